"""Who is in a federation is decided here: enrolment, renewal, revocation; each on paper first.

A member counts when the roster that names it is written, and no longer when one without it is.
Whatever was written before that, and did not get so far, is written again by the next attempt.
"""

import ipaddress
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from protocol.certificates import Certificate
from protocol.errors import UsageError
from protocol.files import open_exclusively, write_atomically
from protocol.identity import Identity, PublicIdentity
from protocol.provisioning.certificate_request import CertificateRequest
from protocol.provisioning.kit import Kit
from protocol.provisioning.unit import service_unit
from protocol.roster import MAX_MEMBERS, Member, Role, Roster
from server.provisioning.authority import Authority
from server.provisioning.home import CoordinatorHome
from server.provisioning.passphrase import Passphrase
from server.provisioning.proxy import nginx_configuration
from server.provisioning.settings import FederationSettings

COORDINATOR = "coordinator"
_LOOPBACK = ("localhost", "127.0.0.1")
_RESERVED = ("authority", COORDINATOR)


@dataclass(frozen=True, slots=True)
class Approval:
    """A member that was let in, and the file to send back to it."""

    member: Member
    certificate: Certificate
    serial: int
    kit: Path


class Federation:
    """The federation whose authority's key lies in a coordinator's folder.

    The key is read when something is to be signed, and ``passphrase`` asked for then.
    """

    def __init__(self, home: CoordinatorHome, passphrase: Passphrase | None = None) -> None:
        """Open it. Raises UsageError where there is none, MalformedMessage for damaged files."""
        if not home.settings.exists():
            raise UsageError(
                f"there is no federation in {home.root}",
                f"Make one: blindsight federation init --home {home.root}",
            )
        self.home = home
        self.settings = FederationSettings.load(home.settings)
        self.authority_certificate = Certificate.load(home.authority_certificate)
        self._passphrase = passphrase or Passphrase()

    @property
    def public(self) -> PublicIdentity:
        """The authority as others know it."""
        return self.authority_certificate.identity

    @cached_property
    def authority(self) -> Authority:
        """The authority with its key. Raises UsageError for another key, or a wrong passphrase."""
        identity = Identity.load(self.home.authority_key, self._passphrase.ask)
        if self.public != identity.public:
            raise UsageError(
                f"{self.home.authority_certificate} is not of the key beside it",
                "Put the files of one authority together again, from a backup.",
            )
        return Authority(identity, self.authority_certificate)

    @classmethod
    def create(
        cls,
        home: CoordinatorHome,
        settings: FederationSettings,
        passphrase: Passphrase | None = None,
    ) -> "Federation":
        """Make keys, certificates, roster, configuration. Raises UsageError, StorageError.

        The authority's key is encrypted with what ``passphrase`` chooses. A key that an interrupted
        attempt left is used; a finished federation is never replaced.
        """
        passphrase = passphrase or Passphrase()
        home.prepare()
        with _alone(home):
            if home.settings.exists():
                raise UsageError(
                    f"there is a federation in {home.root} already", "Name another folder."
                )
            for name in ("members", "units", "state", "releases"):
                home.folder(name)
            key = home.authority_key
            identity = (
                Identity.load(key, passphrase.ask)
                if key.exists()
                else Identity.create(key, passphrase.choose())
            )
            authority = Authority.create(identity, settings.name)
            write_atomically(home.authority_certificate, authority.certificate.pem)
            home.audit.record("federation-created", authority=identity.public.fingerprint)
            _certify_coordinator(home, authority, settings.host)
            public = home.key().public
            roster = Roster(settings.name, 1, (Member(COORDINATOR, "coordinator", public),))
            roster.write(home.roster, identity)
            write_proxy(home, settings)
            unit = service_unit(f"Blindsight coordinator of {settings.name}", home.root,
                                "coordinator", "up")  # fmt: skip
            write_atomically(home.unit, unit)
            settings.save(home.settings)
        return cls(home, passphrase)

    def roster(self) -> Roster:
        """The roster as it stands."""
        return Roster.read(self.home.roster, self.public)

    def certificate(self, member: Member) -> Certificate:
        """The certificate that a member got last."""
        own = self.home.credentials.certificate
        kept = self.home.member(member.name) / "certificate.pem"
        return Certificate.load(own if member.role == "coordinator" else kept)

    def approve(
        self,
        request: CertificateRequest,
        role: Role,
        hosts: Sequence[str] | None = None,
        renew: bool = False,
    ) -> Approval:
        """Let a party in whose fingerprint was compared, or renew a member's certificate.

        Of the hosts that the request names, ``hosts`` are confirmed; None confirms none and is
        refused where some were asked for. Raises UsageError, StorageError.
        """
        granted = self._confirm(request, hosts)
        member = Member(request.name, role, request.identity)
        with _alone(self.home):
            roster = self.roster()
            self._check(member, roster, renew)
            certificate = self.authority.issue(request.identity, request.name, role, granted)
            if not renew:
                members = (*roster.members, member)
                roster = replace(roster, serial=roster.serial + 1, members=members)
            signed = roster.to_json(self.authority.identity)
            kit = Kit(
                self.settings.name, member.name, role, self.settings.coordinator,
                self.authority.certificate, certificate, signed,
            )  # fmt: skip
            place = self.home.member(member.name)
            self.home.folder(f"members/{member.name}")
            write_atomically(place / "request.pem", request.pem)
            write_atomically(place / "certificate.pem", certificate.pem)
            write_atomically(place / "kit.tar", kit.to_bytes(self.authority.identity))
            self.home.audit.record(
                "certificate-renewed" if renew else "member-approved",
                member=member.name,
                role=role,
                fingerprint=member.identity.fingerprint,
                hosts=", ".join(granted),
                certificate=f"{certificate.parsed.serial_number:x}",
                roster=roster.serial,
            )
            if not renew:
                write_atomically(self.home.roster, signed)
        return Approval(member, certificate, roster.serial, place / "kit.tar")

    def revoke(self, name: str) -> tuple[Member, Roster]:
        """Take a member out of the roster. Raises UsageError, StorageError.

        Its certificate stays what it is: whoever asks the roster refuses it from the moment that
        the new roster is there, so hand that out at once.
        """
        with _alone(self.home):
            roster = self.roster()
            member = roster.named(name)
            if member is None or member.role == "coordinator":
                raise UsageError(
                    f"no institution and no searcher is called {name!r:.80}",
                    "See blindsight federation roster.",
                )
            rest = tuple(one for one in roster.members if one != member)
            roster = replace(roster, serial=roster.serial + 1, members=rest)
            signed = roster.to_json(self.authority.identity)
            self.home.audit.record(
                "member-revoked",
                member=name,
                fingerprint=member.identity.fingerprint,
                roster=roster.serial,
            )
            write_atomically(self.home.roster, signed)
        return member, roster

    def _confirm(self, request: CertificateRequest, hosts: Sequence[str] | None) -> tuple[str, ...]:
        if request.hosts and hosts is None:
            shown = " ".join(f"--host {host}" for host in request.hosts)
            raise UsageError(
                f"{request.name} asks to serve as {', '.join(request.hosts)}: are these its own?",
                f"Confirm what is right ({shown}), or --no-hosts.",
            )
        for host in hosts or ():
            if host not in request.hosts:
                raise UsageError(
                    f"{request.name} does not ask to serve as {host}",
                    f"It asks for: {', '.join(request.hosts) or 'no host'}.",
                )
            if host == self.settings.host and not _on_loopback(host):
                raise UsageError(
                    f"{host} is the coordinator's host; {request.name} cannot serve under it",
                    "It needs a host of its own, or none.",
                )
        return tuple(hosts or ())

    def _check(self, member: Member, roster: Roster, renew: bool) -> None:
        key = member.identity
        named, same = roster.named(member.name), roster.find(key)
        if member.name in _RESERVED or key == self.public:
            raise UsageError(
                f"{member.name} with key {key.fingerprint} is the coordinator's own",
                "Every party takes a name of its own, and makes a key of its own.",
            )
        if renew:
            if member != named:
                raise UsageError(
                    f"there is no {member.role} {member.name} with key {key.fingerprint} to renew",
                    "A new key is a new member: revoke the old one, then approve without --renew.",
                )
        elif member == named:
            raise UsageError(
                f"{member.name} is enrolled already, with this key",
                f"Its kit is {self.home.member(member.name) / 'kit.tar'}; --renew makes another "
                "with a new certificate.",
            )
        elif named is not None and named.identity != key:
            raise UsageError(
                f"{member.name} is enrolled already, with key {named.identity.fingerprint}; the "
                f"request has {key.fingerprint}",
                f"If it is the same party with a new key: blindsight federation revoke "
                f"{member.name}, then approve. Else it needs another name.",
            )
        elif same is not None:
            raise UsageError(
                f"this key is enrolled already, as {same.role} {same.name}",
                "Every party, and every role, makes a key of its own.",
            )
        elif len(roster.members) >= MAX_MEMBERS:
            raise UsageError(f"a federation has at most {MAX_MEMBERS:,} members")


def renew_coordinator(federation: Federation) -> Certificate:
    """Give the coordinator a new certificate for the same key, for the host in federation.toml."""
    with _alone(federation.home):
        return _certify_coordinator(federation.home, federation.authority, federation.settings.host)


def write_proxy(home: CoordinatorHome, settings: FederationSettings) -> None:
    """Write nginx.conf anew, as federation.toml has it, and the folders that it needs."""
    home.folder("state")
    home.folder("state/nginx")
    write_atomically(home.proxy, nginx_configuration(settings))


def _certify_coordinator(home: CoordinatorHome, authority: Authority, host: str) -> Certificate:
    identity, hosts = home.key(), tuple(dict.fromkeys((host, *_LOOPBACK)))
    certificate = authority.issue(identity.public, COORDINATOR, "coordinator", hosts)
    write_atomically(home.credentials.certificate, certificate.pem)
    write_atomically(home.credentials.authority, authority.certificate.pem)
    home.audit.record(
        "coordinator-certified",
        fingerprint=identity.public.fingerprint,
        hosts=", ".join(hosts),
        certificate=f"{certificate.parsed.serial_number:x}",
    )
    return certificate


@contextmanager
def _alone(home: CoordinatorHome) -> Iterator[None]:
    """Two approvals at once would make two rosters with one serial."""
    home.folder("authority")
    with open_exclusively(home.root / "authority/lock"):
        yield


def _on_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
