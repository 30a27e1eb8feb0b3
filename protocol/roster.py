"""Who is in a federation: names, roles and public keys, signed by the federation's authority.

A party believes the roster that it holds, not whoever speaks: the coordinator relays keys and
messages, and could otherwise bring in institutions of its own. ``roster.json``: see
docs/protocol.md 9.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from protocol.errors import MalformedMessage, UsageError
from protocol.files import read_bounded, write_atomically
from protocol.identity import Identity, PublicIdentity

Role = Literal["coordinator", "institution", "searcher"]
FORMAT = 1
MAX_MEMBERS = 4096
MAX_BYTES = 4 << 20
_PURPOSE = "roster"
_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789-")
_HINT = "ask the coordinator for the federation's current roster.json"


@dataclass(frozen=True, slots=True)
class Member:
    """One party: a name that is unique in the federation, what it may be, and its public key."""

    name: str
    role: Role
    identity: PublicIdentity


@dataclass(frozen=True, slots=True)
class Roster:
    """The members of ``federation``; of two rosters the one with the higher ``serial`` holds."""

    federation: str
    serial: int
    members: tuple[Member, ...]

    def of_role(self, role: Role) -> tuple[Member, ...]:
        """The members with this role, in order of name."""
        return tuple(sorted((m for m in self.members if m.role == role), key=lambda m: m.name))

    def find(self, identity: PublicIdentity) -> Member | None:
        """The member with this key; None for a stranger and for one who was revoked."""
        return next((one for one in self.members if one.identity == identity), None)

    def named(self, name: str) -> Member | None:
        """The member of this name."""
        return next((one for one in self.members if one.name == name), None)

    def to_json(self, authority: Identity) -> bytes:
        """The roster with the authority's signature."""
        content = self._content()
        signed = content | {"signature": authority.sign(_PURPOSE, _canonical(content)).hex()}
        return (json.dumps(signed, indent=1) + "\n").encode()

    @classmethod
    def from_json(cls, content: bytes, authority: PublicIdentity) -> "Roster":
        """Read and verify. Raises MalformedMessage, saying what is wrong with it."""
        if len(content) > MAX_BYTES:
            raise MalformedMessage(f"roster: expected at most {MAX_BYTES:,} bytes", _HINT)
        try:
            found = json.loads(content)
            signature = bytes.fromhex(found.pop("signature"))
            if found["format"] != FORMAT:
                raise MalformedMessage(f"roster: expected format {FORMAT}", _HINT)
            if not authority.verifies(_PURPOSE, _canonical(found), signature):
                raise MalformedMessage(
                    "roster: this federation's authority did not sign it as it is", _HINT
                )
            members = tuple(_member(one) for one in found["members"][: MAX_MEMBERS + 1])
            roster = cls(found["federation"], found["serial"], members)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise MalformedMessage(f"roster: it is not one ({error})"[:200], _HINT) from error
        if roster._content() != found:  # an unknown key, a name twice, or too many members
            raise MalformedMessage("roster: it holds what a roster does not", _HINT)
        return roster

    def write(self, path: Path, authority: Identity) -> None:
        """Keep the signed roster at ``path``. Raises StorageError."""
        write_atomically(path, self.to_json(authority))

    @classmethod
    def read(cls, path: Path, authority: PublicIdentity) -> "Roster":
        """Read what ``write`` wrote. Raises UsageError if it is not there, MalformedMessage."""
        try:
            return cls.from_json(read_bounded(path, MAX_BYTES, _HINT), authority)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}", _HINT) from error

    def _content(self) -> dict[str, Any]:
        by_name = {one.name: one for one in self.members}
        return {
            "format": FORMAT,
            "federation": self.federation,
            "serial": self.serial,
            "members": [
                {"name": one.name, "role": one.role, "public_key": one.identity.der.hex()}
                for _, one in sorted(by_name.items())
            ],
        }


def check_name(name: object) -> str:
    """Return a party's name: 1 to 63 small letters, digits and hyphens. Raises UsageError."""
    if not isinstance(name, str) or not 0 < len(name) < 64 or set(name) - _NAME or name[0] == "-":
        raise UsageError(
            f"{name!r:.80} is no name for a party",
            "take 1 to 63 small letters, digits and hyphens, the first no hyphen",
        )
    return name


def _member(found: dict[str, Any]) -> Member:
    if found["role"] not in get_args(Role):
        raise ValueError(f"unknown role {found['role']!r:.20}")
    key = PublicIdentity.read(bytes.fromhex(found["public_key"]))
    return Member(check_name(found["name"]), found["role"], key)


def _canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
