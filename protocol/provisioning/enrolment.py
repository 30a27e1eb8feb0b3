"""How a party joins: it makes a key and asks, compares a fingerprint, and installs what it gets.

What comes back is believed only as far as the authority signed it, and the authority only after
people compared its fingerprint. From then on it never changes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from protocol.certificates import Certificate
from protocol.errors import MalformedMessage, UsageError
from protocol.files import read_bounded, write_atomically
from protocol.provisioning.certificate_request import CertificateRequest
from protocol.provisioning.fingerprint import check_fingerprint
from protocol.provisioning.home import Home
from protocol.provisioning.kit import Kit
from protocol.roster import MAX_BYTES, Role, Roster

_HINT = "ask the coordinator for the federation's current roster.json"


@dataclass(frozen=True, slots=True)
class RosterChange:
    """What a new roster says that the one before did not; a changed key is both."""

    serial: int
    joined: tuple[str, ...]
    left: tuple[str, ...]

    def __str__(self) -> str:
        said = [f"roster {self.serial}"]
        said += [f"{name} joined" for name in self.joined] + [f"{name} left" for name in self.left]
        return ", ".join(said)


def request_certificate(home: Home, name: str, hosts: Iterable[str]) -> CertificateRequest:
    """Make a key here, unless there is one, and write the request that leaves.

    Raises UsageError, StorageError.
    """
    hosts = CertificateRequest.check(name, hosts)  # before there is a key
    home.prepare()
    request = CertificateRequest.make(home.key(), name, hosts)
    write_atomically(home.request, request.pem)
    home.audit.record(
        "certificate-requested",
        name=name,
        hosts=", ".join(request.hosts),
        fingerprint=request.identity.fingerprint,
    )
    return request


def install_kit(
    home: Home, path: Path, role: Role, fingerprint: str | None, now: datetime | None = None
) -> tuple[Kit, RosterChange]:
    """Verify a startup kit and keep its certificates and its roster. May be done again.

    Raises UsageError if it is not for this party's key and role or the fingerprint is another,
    MalformedMessage for a kit that was changed or has expired, StorageError.
    """
    if not home.credentials.private_key.exists():
        raise UsageError(
            f"{home.root} holds no key", f"Make it first: blindsight {role} request --home …"
        )
    kit = Kit.load(path, now)
    if kit.role != role:
        raise UsageError(
            f"the kit is for the {kit.role} {kit.name}, not for this {role}",
            f"Install it there: blindsight {kit.role} install.",
        )
    if kit.certificate.identity != home.key().public:
        raise UsageError(
            f"the kit is for key {kit.certificate.identity.fingerprint}, the key here is "
            f"{home.key().public.fingerprint}",
            "Send the request.pem of this folder to the coordinator.",
        )
    check_fingerprint(fingerprint, kit.authority.identity, f"the authority of {kit.federation}")
    if home.credentials.authority.exists():
        believed = home.read_authority().identity
        if believed != kit.authority.identity:
            raise UsageError(
                f"{home.root} belongs to another authority, {believed.fingerprint}",
                "Join another federation from another folder.",
            )
    change = _change(home, kit.read_roster())
    write_atomically(home.credentials.authority, kit.authority.pem)
    write_atomically(home.credentials.certificate, kit.certificate.pem)
    home.audit.record(
        "kit-installed",
        federation=kit.federation,
        name=kit.name,
        authority=kit.authority.identity.fingerprint,
        certificate=f"{kit.certificate.parsed.serial_number:x}",
        roster=change.serial,
    )
    write_atomically(home.roster, kit.roster)
    return kit, change


def update_roster(home: Home, path: Path) -> RosterChange:
    """Verify a newer roster and keep it. Raises UsageError, MalformedMessage, StorageError."""
    authority = home.read_authority().identity
    try:
        content = read_bounded(path, MAX_BYTES, _HINT)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}", _HINT) from error
    change = _change(home, Roster.from_json(content, authority))
    home.audit.record(
        "roster-updated",
        roster=change.serial,
        joined=", ".join(change.joined)[:8000],
        left=", ".join(change.left)[:8000],
    )
    write_atomically(home.roster, content)
    return change


def _change(home: Home, new: Roster) -> RosterChange:
    """What ``new`` changes. Raises MalformedMessage if it does not follow the roster here."""
    if not home.roster.exists():
        members = tuple(one.name for one in new.members)
        return RosterChange(new.serial, members, ())
    old = home.read_roster()
    if new.federation != old.federation:
        raise MalformedMessage(
            f"roster: expected one of {old.federation}, got one of {new.federation}", _HINT
        )
    if new.serial < old.serial:
        raise MalformedMessage(
            f"roster: number {new.serial} is older than number {old.serial}, which is installed",
            "An old roster brings revoked members back; " + _HINT,
        )
    if new.serial == old.serial and new != old:
        raise MalformedMessage(
            f"roster: there are two different ones with number {new.serial}",
            "The coordinator signed both: ask it why, and compare them.",
        )
    joined, left = set(new.members) - set(old.members), set(old.members) - set(new.members)
    return RosterChange(
        new.serial,
        tuple(sorted(one.name for one in joined)),
        tuple(sorted(one.name for one in left)),
    )


def own_certificate(home: Home, now: datetime | None = None) -> Certificate:
    """A party's own certificate, verified. Raises UsageError, MalformedMessage."""
    certificate = Certificate.load(home.credentials.certificate)
    certificate.check_issued_by(home.read_authority(), now)
    return certificate
