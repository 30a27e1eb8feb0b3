"""Certificates of a federation: one authority, one curve, one form; read with suspicion (X.509 v3).

A certificate says that a key is NAME's, for TLS. What NAME may do stands in the roster.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from protocol.errors import MalformedMessage, UsageError
from protocol.files import read_bounded
from protocol.hosts import member_host
from protocol.identity import PublicIdentity
from protocol.roster import check_name

MAX_BYTES = 16_384
_HINT = "expected a PEM file as blindsight writes them"
# What the parser may raise for foreign bytes; a warning is raised only where it is an error.
UNREADABLE = (
    *(ValueError, TypeError, OverflowError, UnsupportedAlgorithm, Warning),
    *(x509.DuplicateExtension, x509.UnsupportedGeneralNameType, x509.ExtensionNotFound),
    x509.InvalidVersion,
)
P = TypeVar("P", x509.Certificate, x509.CertificateSigningRequest)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate in the form that this project gives: nothing is verified by reading it."""

    parsed: x509.Certificate
    identity: PublicIdentity
    name: str
    federation: str

    @classmethod
    def read(cls, pem: bytes) -> "Certificate":
        """Parse foreign bytes. Raises MalformedMessage, saying what is wrong with them."""
        parsed = parse_pem(pem, x509.load_pem_x509_certificate, "certificate")
        try:
            name, federation = read_subject(parsed.subject)
            identity = PublicIdentity.of(parsed.public_key())
            len(parsed.extensions)  # parsed when they are asked for
            if parsed.version is not x509.Version.v3 or parsed.serial_number <= 0:
                raise ValueError("no version 3, or no serial number")
        except (*UNREADABLE, UsageError) as error:
            raise MalformedMessage(
                f"certificate: not one of ours ({error})"[:200], _HINT
            ) from error
        return cls(parsed, identity, name, federation)

    @classmethod
    def load(cls, path: Path) -> "Certificate":
        """Read a file. Raises UsageError if it is not there, MalformedMessage, DataError."""
        try:
            return cls.read(read_bounded(path, MAX_BYTES, _HINT))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}", _HINT) from error

    @property
    def pem(self) -> bytes:
        """As a file has it."""
        return self.parsed.public_bytes(Encoding.PEM)

    @property
    def not_before(self) -> datetime:
        """Valid from then on (UTC)."""
        return self.parsed.not_valid_before_utc

    @property
    def not_after(self) -> datetime:
        """Valid until then (UTC)."""
        return self.parsed.not_valid_after_utc

    @property
    def hosts(self) -> tuple[str, ...]:
        """The DNS names and IP addresses under which its holder may serve."""
        return tuple(host for host in read_hosts(self.parsed.extensions) if host != self._own)

    @property
    def _own(self) -> str:
        return member_host(self.name)

    def check_dates(self, now: datetime | None = None) -> None:
        """Raise MalformedMessage unless it is valid now, by this machine's clock."""
        now = now or datetime.now(UTC)
        if now < self.not_before:
            raise MalformedMessage(
                f"the certificate of {self.name} is valid from {self.not_before:%Y-%m-%d %H:%M} UTC"
                f" on; this machine says that it is {now:%Y-%m-%d %H:%M}",
                "Set the clock of this machine right, then try again.",
            )
        if now > self.not_after:
            raise MalformedMessage(
                f"the certificate of {self.name} expired on {self.not_after:%Y-%m-%d %H:%M} UTC",
                "Ask the coordinator for a new one: blindsight federation approve --renew.",
            )

    def check_authority(self, now: datetime | None = None) -> None:
        """Raise MalformedMessage unless this is a valid authority's own certificate."""
        try:
            _require_authority(self.parsed)
        except (*UNREADABLE, InvalidSignature) as error:
            raise MalformedMessage(
                f"certificate: it is not an authority's ({error})"[:200], _HINT
            ) from error
        self.check_dates(now)

    def check_issued_by(self, authority: "Certificate", now: datetime | None = None) -> None:
        """Raise MalformedMessage unless ``authority`` issued it, for TLS, and both are valid now.

        The path is checked by ``cryptography`` (RFC 5280, the web's profile).
        """
        now = now or datetime.now(UTC)
        self.check_dates(now)
        authority.check_authority(now)
        try:
            _require_path(self.parsed, authority.parsed)
        except VerificationError as error:
            raise MalformedMessage(
                f"the certificate of {self.name} is not one of authority "
                f"{authority.identity.fingerprint[:9]}… ({error})"[:300],
                "It belongs to another federation, or was changed on its way.",
            ) from error


# A service asks of the same certificates at every call. All but the dates stays as it was found,
# and those are checked apart, each time; what fails is looked at anew.


@lru_cache(maxsize=256)
def _require_authority(parsed: x509.Certificate) -> None:
    parsed.verify_directly_issued_by(parsed)
    constraints = parsed.extensions.get_extension_for_class(x509.BasicConstraints)
    usage = parsed.extensions.get_extension_for_class(x509.KeyUsage)
    if constraints.value != x509.BasicConstraints(True, 0) or not constraints.critical:
        raise ValueError("its constraints are not an authority's")
    if not usage.value.key_cert_sign:
        raise ValueError("it may not sign certificates")


@lru_cache(maxsize=256)
def _require_path(parsed: x509.Certificate, authority: x509.Certificate) -> None:
    both = max(parsed.not_valid_before_utc, authority.not_valid_before_utc)
    verifier = PolicyBuilder().store(Store([authority])).time(both).build_client_verifier()
    verifier.verify(parsed, [])


def parse_pem(pem: bytes, parse: Callable[[bytes], P], what: str) -> P:
    """Parse one PEM block and nothing beside it. Raises MalformedMessage."""
    if len(pem) > MAX_BYTES:
        raise MalformedMessage(
            f"{what}: expected at most {MAX_BYTES:,} bytes, got {len(pem):,}", _HINT
        )
    pem = pem.replace(b"\r\n", b"\n").strip() + b"\n"
    try:
        found = parse(pem)
        same = found.public_bytes(Encoding.PEM) == pem
    except UNREADABLE as error:
        raise MalformedMessage(f"{what}: it cannot be read ({error})"[:200], _HINT) from error
    if not same:
        raise MalformedMessage(f"{what}: there is more in it than one {what}", _HINT)
    return found


def read_subject(subject: x509.Name) -> tuple[str, str]:
    """The common name, which is a party's, and the organisation; "" for none. Raises ValueError."""
    found = {one.oid: one.value for one in subject}
    if len(found) != len(list(subject)) or set(found) - {
        NameOID.COMMON_NAME,
        NameOID.ORGANIZATION_NAME,
    }:
        raise ValueError("its subject holds more than a name and a federation")
    name, federation = found.get(NameOID.COMMON_NAME), found.get(NameOID.ORGANIZATION_NAME)
    return check_name(name), "" if federation is None else check_name(federation)


def read_hosts(extensions: x509.Extensions) -> tuple[str, ...]:
    """What the extension subjectAltName holds, as text; empty where there is none."""
    try:
        found = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return ()
    return tuple(str(one.value) for one in found)


def read_authority(path: Path, now: datetime | None = None) -> PublicIdentity:
    """The public key of the authority whose certificate is in a file. Raises as ``load`` does."""
    certificate = Certificate.load(path)
    certificate.check_authority(now)
    return certificate.identity
