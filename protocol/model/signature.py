"""The coordinator's signature on a release: what institutions and searchers check before use.

``signature.json`` beside the manifest: the signer's public key, and its signature over the
manifest's bytes, which name the hash of everything else. A release without one is fit for local
work alone.
"""

import json
from pathlib import Path

from protocol.errors import MalformedMessage, StorageError
from protocol.files import write_atomically
from protocol.identity import Identity, PublicIdentity
from protocol.model.release import MANIFEST, Release, read_file, read_release
from protocol.roster import Roster

SIGNATURE = "signature.json"
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


def read_signed_release(path: Path, roster: Roster) -> Release:
    """Read a release that a coordinator of this federation signed, and check all of it.

    Raises StorageError, naming the file that is missing or is not what it should be.
    """
    found = read_file(path / SIGNATURE, None, None)
    try:
        said = json.loads(found)
        key, signature = bytes.fromhex(said["public_key"]), bytes.fromhex(said["signature"])
        signer = PublicIdentity.read(key)
    except (ValueError, KeyError, TypeError, RecursionError, MalformedMessage) as error:
        raise StorageError(f"{path / SIGNATURE}: it is no signature", _HINT) from error
    member = roster.find(signer)
    if member is None or member.role != "coordinator":
        raise StorageError(
            f"{path}: signed by {signer.fingerprint}, who is no coordinator of this federation",
            _HINT,
        )
    if not signer.verifies(_PURPOSE, read_file(path / MANIFEST, None, None), signature):
        raise StorageError(f"{path}: the signature is not one of its manifest", _HINT)
    return read_release(path)
