"""The federation's authority: one key that signs certificates, rosters and startup kits."""

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from protocol.certificates import Certificate
from protocol.hosts import member_host
from protocol.identity import Identity, PublicIdentity
from protocol.provisioning.certificate_request import alternative_names
from protocol.roster import Role, check_name

AUTHORITY_LIFE = timedelta(days=3650)
MEMBER_LIFE = timedelta(days=365)
# Clocks differ: a fresh certificate is good for whoever is a little late.
_EARLIER = timedelta(minutes=5)


class Authority:
    """Holds the key; whoever has it decides who is in the federation."""

    def __init__(self, identity: Identity, certificate: Certificate) -> None:
        self.identity = identity
        self.certificate = certificate

    @classmethod
    def create(
        cls, identity: Identity, federation: str, now: datetime | None = None
    ) -> "Authority":
        """An authority that vouches for itself; no other can stand below it."""
        now = now or datetime.now(UTC)
        subject = _subject("authority", check_name(federation))
        public = identity.public
        certificate = (
            _builder(subject, subject, public, public, now - _EARLIER, now + AUTHORITY_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs_certificates=True), critical=True)
            .sign(identity.key, hashes.SHA384())
        )
        return cls(identity, Certificate(certificate, public, "authority", federation))

    def issue(
        self,
        public: PublicIdentity,
        name: str,
        role: Role,
        hosts: Iterable[str] = (),
        life: timedelta = MEMBER_LIFE,
        now: datetime | None = None,
    ) -> Certificate:
        """Bind a key to a name and to the hosts that were confirmed; they are checked before.

        A searcher's certificate serves for asking alone: nobody can be served with it.
        """
        now, federation = now or datetime.now(UTC), self.certificate.federation
        until = min(now + life, self.certificate.not_after)
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role != "searcher":
            purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
        subject, issuer = _subject(check_name(name), federation), self.certificate.parsed.subject
        signer = self.identity.public
        certificate = (
            _builder(subject, issuer, public, signer, now - _EARLIER, until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(alternative_names([member_host(name), *hosts]), critical=False)
            .sign(self.identity.key, hashes.SHA384())
        )
        return Certificate(certificate, public, name, federation)


def _subject(name: str, federation: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, federation),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    holder: PublicIdentity,
    signer: PublicIdentity,
    begin: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(holder.key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(holder.key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.key), critical=False
        )
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
