"""A request for a certificate (PKCS #10): a name, its hosts and a public key; its maker signs it.

The key is made where it is used, and only this leaves. The signature shows that whoever asks has
the key; who that is, the fingerprint has to show.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from protocol.certificates import (
    MAX_BYTES,
    UNREADABLE,
    parse_pem,
    read_hosts,
    read_subject,
)
from protocol.errors import MalformedMessage, UsageError
from protocol.files import read_bounded
from protocol.hosts import check_host, is_address
from protocol.identity import Identity, PublicIdentity
from protocol.roster import check_name

MAX_HOSTS = 16
_HINT = "expected request.pem as blindsight institution request writes it"


@dataclass(frozen=True, slots=True)
class CertificateRequest:
    """Who asks: everything in it is what the other side says of itself."""

    name: str
    hosts: tuple[str, ...]
    identity: PublicIdentity
    pem: bytes

    @classmethod
    def make(cls, identity: Identity, name: str, hosts: Iterable[str]) -> "CertificateRequest":
        """Ask for a certificate that binds ``identity`` to ``name``. Raises UsageError."""
        hosts = cls.check(name, hosts)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
        if hosts:
            builder = builder.add_extension(alternative_names(hosts), critical=False)
        pem = builder.sign(identity.key, hashes.SHA384()).public_bytes(Encoding.PEM)
        return cls(name, hosts, identity.public, pem)

    @staticmethod
    def check(name: str, hosts: Iterable[str]) -> tuple[str, ...]:
        """What can be asked for: a party's name, and these hosts, once each. Raises UsageError."""
        check_name(name)
        checked = tuple(dict.fromkeys(check_host(host) for host in hosts))
        if len(checked) > MAX_HOSTS:
            raise UsageError(f"expected at most {MAX_HOSTS} hosts, got {len(checked)}")
        return checked

    @classmethod
    def read(cls, pem: bytes) -> "CertificateRequest":
        """Check foreign bytes and their signature. Raises MalformedMessage."""
        parsed = parse_pem(pem, x509.load_pem_x509_csr, "request")
        try:
            identity = PublicIdentity.of(parsed.public_key())
            name, other = read_subject(parsed.subject)
            if other or {type(one.value) for one in parsed.extensions} - {
                x509.SubjectAlternativeName
            }:
                raise ValueError("it asks for more than a name and hosts")
            hosts = cls.check(name, read_hosts(parsed.extensions))
            if not parsed.is_signature_valid:
                raise ValueError("whoever made it does not have the key in it")
        except (*UNREADABLE, UsageError) as error:
            raise MalformedMessage(f"request: {error}"[:300], _HINT) from error
        return cls(name, hosts, identity, parsed.public_bytes(Encoding.PEM))

    @classmethod
    def load(cls, path: Path) -> "CertificateRequest":
        """Read a file. Raises UsageError if it is not there, MalformedMessage, DataError."""
        try:
            return cls.read(read_bounded(path, MAX_BYTES, _HINT))
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}", _HINT) from error


def alternative_names(hosts: Iterable[str]) -> x509.SubjectAlternativeName:
    """The extension that holds these checked hosts."""
    return x509.SubjectAlternativeName(
        [
            x509.IPAddress(ipaddress.ip_address(host)) if is_address(host) else x509.DNSName(host)
            for host in hosts
        ]
    )
