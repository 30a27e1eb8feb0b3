"""The startup kit: the one file that an approved party gets back. Only public things are in it.

A plain tar of five files in one order and one form, signed by the authority as a whole. It brings
no commands and no policy: those are written by the software at the party itself.
"""

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import get_args

from protocol.certificates import MAX_BYTES as MAX_CERTIFICATE_BYTES
from protocol.certificates import Certificate
from protocol.errors import MalformedMessage, UsageError
from protocol.files import read_bounded
from protocol.hosts import parse_endpoint
from protocol.identity import Identity
from protocol.roster import MAX_BYTES as MAX_ROSTER_BYTES
from protocol.roster import Role, Roster, check_name

FORMAT = 1
_PURPOSE = "startup-kit"
_LIMITS = {
    "kit.json": 4096,
    "authority.pem": MAX_CERTIFICATE_BYTES,
    "certificate.pem": MAX_CERTIFICATE_BYTES,
    "roster.json": MAX_ROSTER_BYTES,
    "signature": 256,
}
_BLOCK = 512
MAX_BYTES = sum(_LIMITS.values()) + 64 * _BLOCK
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)
_HINT = "ask the coordinator for the startup kit again"


@dataclass(frozen=True, slots=True)
class Kit:
    """What the authority says to one party; ``coordinator`` is HOST:PORT."""

    federation: str
    name: str
    role: Role
    coordinator: str
    authority: Certificate
    certificate: Certificate
    roster: bytes

    def to_bytes(self, authority: Identity) -> bytes:
        """The file, signed."""
        content = {
            "format": FORMAT,
            "federation": self.federation,
            "name": self.name,
            "role": self.role,
            "coordinator": self.coordinator,
        }
        files = {
            "kit.json": (json.dumps(content, indent=1) + "\n").encode(),
            "authority.pem": self.authority.pem,
            "certificate.pem": self.certificate.pem,
            "roster.json": self.roster,
        }
        return _tar(files | {"signature": authority.sign(_PURPOSE, _digest(files))})

    @classmethod
    def from_bytes(cls, content: bytes, now: datetime | None = None) -> "Kit":
        """Read foreign bytes and verify them against the authority in them.

        That authority is anybody until its fingerprint was compared. Raises MalformedMessage.
        """
        files = _files(content)
        authority = Certificate.read(files["authority.pem"])
        authority.check_authority(now)
        signature = files.pop("signature")
        if not authority.identity.verifies(_PURPOSE, _digest(files), signature):
            raise MalformedMessage("startup kit: its authority did not sign it as it is", _HINT)
        certificate = Certificate.read(files["certificate.pem"])
        certificate.check_issued_by(authority, now)
        try:
            found = json.loads(files["kit.json"])
            if found.pop("format") != FORMAT or found["role"] not in get_args(Role):
                raise ValueError("another format, or an unknown role")
            parse_endpoint(found["coordinator"])
            check_name(found["federation"])
            kit = cls(
                **found, authority=authority, certificate=certificate, roster=files["roster.json"]
            )
        except (*_UNREADABLE, UsageError) as error:
            raise MalformedMessage(f"startup kit: kit.json: {error}"[:200], _HINT) from error
        kit.read_roster()
        return kit

    @classmethod
    def load(cls, path: Path, now: datetime | None = None) -> "Kit":
        """Read a file. Raises UsageError if it is not there, MalformedMessage, DataError."""
        try:
            return cls.from_bytes(read_bounded(path, MAX_BYTES, _HINT), now)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}", _HINT) from error

    def read_roster(self) -> Roster:
        """The roster in it, verified; this party is in it. Raises MalformedMessage."""
        roster = Roster.from_json(self.roster, self.authority.identity)
        member = roster.find(self.certificate.identity)
        if member is None or (member.name, member.role) != (self.name, self.role):
            raise MalformedMessage(f"startup kit: its roster has no {self.role} {self.name}", _HINT)
        said = {self.federation, roster.federation, self.certificate.federation}
        if len(said) > 1 or self.certificate.name != self.name:
            raise MalformedMessage("startup kit: its parts are of different parties", _HINT)
        return roster


def _tar(files: dict[str, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(content), 0o600
            tar.addfile(member, io.BytesIO(content))
    return made.getvalue()


def _files(content: bytes) -> dict[str, bytes]:
    """The files of a kit, if its bytes are those that ``_tar`` gives for them: there is one form.

    tarfile itself would believe its headers: long names, sparse files, other tars' extensions.
    """
    if len(content) > MAX_BYTES:
        raise MalformedMessage(
            f"startup kit: expected at most {MAX_BYTES:,} bytes, got {len(content):,}", _HINT
        )
    files, start = {}, 0
    for name, limit in _LIMITS.items():
        header = content[start : start + _BLOCK]
        if header[:100].rstrip(b"\0") != name.encode():
            raise MalformedMessage(
                f"startup kit: expected {name}, got {header[:40].rstrip(bytes(1))!r}", _HINT
            )
        digits = header[124:135]
        size = int(digits, 8) if digits.isdigit() and not digits.strip(b"01234567") else limit + 1
        if size > limit:
            raise MalformedMessage(f"startup kit: {name}: expected at most {limit:,} bytes", _HINT)
        start += _BLOCK
        files[name] = content[start : start + size]
        start += -(-size // _BLOCK) * _BLOCK
    if _tar(files) != content:
        raise MalformedMessage("startup kit: there is more in it than a kit holds", _HINT)
    return files


def _digest(files: dict[str, bytes]) -> bytes:
    hashes = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    return json.dumps(hashes, sort_keys=True).encode()
