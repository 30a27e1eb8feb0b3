"""The coordinator's signature on a release: what institutions and searchers check before use.

``signature.json`` beside the manifest: the signer's public key, and its signature over the
manifest's bytes, which name the hash of everything else. A release without one is fit for local
work alone. Who signed must be a coordinator in the roster as it is now: a release of one who has
left is refused, and is to be signed anew by who follows.
"""

import json
from pathlib import Path

from protocol.directory_wire import RELEASE_ID
from protocol.errors import MalformedMessage, StorageError
from protocol.files import write_atomically
from protocol.identity import Identity, PublicIdentity
from protocol.model.release import MANIFEST, Release, parse_manifest, read_file, read_release
from protocol.roster import Roster

SIGNATURE = "signature.json"
SIGNATURE_BYTES = 4096
_PURPOSE = "release"
_HINT = "fetch the release again from the coordinator; do not use this one"


def sign_release(release: Release, coordinator: Identity) -> None:
    """Put the coordinator's signature beside the manifest. Raises StorageError."""
    manifest = read_file(release.path / MANIFEST, None, None)
    signature = {
        "public_key": coordinator.public.der.hex(),
        "signature": coordinator.sign(_PURPOSE, manifest).hex(),
    }
    write_atomically(release.path / SIGNATURE, json.dumps(signature, indent=1) + "\n")


def parse_signed(path: Path, manifest: bytes, signature: bytes, roster: Roster) -> Release:
    """Check the bytes of a manifest and of its signature, from wherever they came.

    ``path`` is the release's folder, for messages. Nothing is said of the files that the manifest
    names. Raises StorageError, as ``parse_manifest`` does or for another signer.
    """
    where = path / SIGNATURE
    try:
        if len(signature) > SIGNATURE_BYTES:
            raise ValueError(f"longer than {SIGNATURE_BYTES:,} bytes")
        said = json.loads(signature)
        key, signed = bytes.fromhex(said["public_key"]), bytes.fromhex(said["signature"])
        signer = PublicIdentity.read(key)
    except (ValueError, KeyError, TypeError, RecursionError, MalformedMessage) as error:
        raise StorageError(f"{where}: it is no signature", _HINT) from error
    member = roster.find(signer)
    if member is None or member.role != "coordinator":
        raise StorageError(
            f"{path}: signed by {signer.fingerprint}, who is no coordinator of this federation",
            _HINT,
        )
    if not signer.verifies(_PURPOSE, manifest, signed):
        raise StorageError(f"{path}: the signature is not one of its manifest", _HINT)
    return parse_manifest(path, manifest)


def read_signed_manifest(path: Path, roster: Roster) -> Release:
    """Read manifest and signature of a release, and none of the files that the manifest names.

    Raises StorageError, naming the file that is missing or is not what it should be.
    """
    signature = read_file(path / SIGNATURE, None, None, SIGNATURE_BYTES)
    return parse_signed(path, read_file(path / MANIFEST, None, None), signature, roster)


def read_signed_release(path: Path, roster: Roster) -> Release:
    """Read a release that a coordinator of this federation signed, and check all of it.

    Raises StorageError, naming the file that is missing or is not what it should be.
    """
    signed = read_signed_manifest(path, roster)
    if read_release(path) != signed:
        raise StorageError(f"{path}: it changed while it was read", _HINT)
    return signed


def signed_releases(root: Path, roster: Roster) -> list[Release]:
    """The releases in the folder ``root`` whose manifest a coordinator signed, the newest first.

    Folders of another name and those without a good signature are passed over; files are not read.
    """
    found: list[Release] = []
    for path in root.iterdir() if root.is_dir() else ():
        if not RELEASE_ID.fullmatch(path.name):
            continue
        try:
            release = read_signed_manifest(path, roster)
        except StorageError:
            continue
        if release.release_id == path.name:
            found.append(release)
    # Times in UTC, as isoformat writes them, sort as text.
    return sorted(found, key=lambda one: (one.created, one.release_id), reverse=True)
