"""Certificates and requests for them: hostile bytes, tricks with names, dates, strangers."""

import base64
import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.certificates import MAX_BYTES, Certificate, read_authority
from protocol.errors import BlindsightError, MalformedMessage, UsageError
from protocol.hosts import check_host, endpoint, is_address, member_host, parse_endpoint
from protocol.identity import Identity
from protocol.provisioning.certificate_request import MAX_HOSTS, CertificateRequest
from server.provisioning.authority import AUTHORITY_LIFE, MEMBER_LIFE
from tests.protocol.parties import AUTHORITY, BOB, CLINIC, DAY, NOW, STRANGER, certificate

HOSTS = ("clinic.example.org", "192.0.2.7", "2001:db8::1")


# --- certificates


def test_a_certificate_binds_a_key_to_a_name_and_to_confirmed_hosts() -> None:
    found = Certificate.read(certificate("clinic", hosts=HOSTS).pem)
    found.check_issued_by(AUTHORITY.certificate)
    assert (found.name, found.federation, found.hosts) == ("clinic", "lab", HOSTS)
    assert found.identity == CLINIC.public
    assert found.not_after - found.not_before == MEMBER_LIFE + timedelta(minutes=5)
    extensions = found.parsed.extensions
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert usage.digital_signature and not usage.key_cert_sign
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == [member_host("clinic"), HOSTS[0]]
    other = certificate("clinic")
    assert other.parsed.serial_number != found.parsed.serial_number


def test_a_searchers_certificate_serves_nobody() -> None:
    for name, may in (("bob", False), ("clinic", True)):
        purposes = certificate(name).parsed.extensions.get_extension_for_class(
            x509.ExtendedKeyUsage
        )
        assert (ExtendedKeyUsageOID.SERVER_AUTH in purposes.value) is may
    store = Store([AUTHORITY.certificate.parsed])
    as_server = PolicyBuilder().store(store).build_server_verifier(x509.DNSName(member_host("bob")))
    with pytest.raises(VerificationError):
        as_server.verify(certificate("bob").parsed, [])


def test_an_expired_and_an_early_certificate_say_so_with_the_clock() -> None:
    found = certificate("clinic")
    with pytest.raises(MalformedMessage, match="expired on"):
        found.check_issued_by(AUTHORITY.certificate, found.not_after + timedelta(seconds=1))
    with pytest.raises(MalformedMessage, match="this machine says that it is"):
        found.check_issued_by(AUTHORITY.certificate, found.not_before - timedelta(hours=1))
    # A clock that is a few minutes late takes a certificate that is fresh.
    found.check_issued_by(AUTHORITY.certificate, datetime.now(UTC) - timedelta(minutes=4))


def test_an_authority_that_expired_vouches_for_nobody() -> None:
    end = AUTHORITY.certificate.not_after
    assert end - NOW <= AUTHORITY_LIFE
    late = AUTHORITY.issue(CLINIC.public, "clinic", "institution", now=end - DAY)
    assert late.not_after == end
    with pytest.raises(MalformedMessage, match="expired"):
        late.check_issued_by(AUTHORITY.certificate, end + timedelta(seconds=1))


def test_a_foreign_certificate_is_refused_though_its_names_are_the_same() -> None:
    with pytest.raises(MalformedMessage, match="not one of authority"):
        certificate("clinic", STRANGER).check_issued_by(AUTHORITY.certificate)
    with pytest.raises(MalformedMessage, match="not an authority's"):
        certificate("clinic").check_issued_by(certificate("museum"))
    with pytest.raises(MalformedMessage):
        AUTHORITY.certificate.check_issued_by(AUTHORITY.certificate)


def test_a_member_cannot_be_an_authority() -> None:
    with pytest.raises(MalformedMessage, match="not an authority's"):
        certificate("clinic").check_authority()


def handmade(**changes: Any) -> bytes:
    """An authority's certificate with something else about it."""
    key = changes.get("key", STRANGER.identity.key)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
    constraints = changes.get("constraints", x509.BasicConstraints(True, 0))
    usage = AUTHORITY.certificate.parsed.extensions.get_extension_for_class(x509.KeyUsage).value
    made = (
        x509.CertificateBuilder(extensions=[])
        .subject_name(changes.get("subject", subject))
        .issuer_name(changes.get("subject", subject))
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(constraints, critical=True)
        .add_extension(changes.get("usage", usage), critical=True)
    )
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA384()
    return made.sign(changes.get("signer", key), algorithm).public_bytes(Encoding.PEM)


def named(*pairs: tuple[Any, str]) -> x509.Name:
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in pairs])


COMMON, UNIT = NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME
LEAF_USAGE = certificate("clinic").parsed.extensions.get_extension_for_class(x509.KeyUsage).value


def test_what_is_made_by_hand_rightly_is_taken() -> None:
    Certificate.read(handmade()).check_authority()


@pytest.mark.parametrize(
    "changes",
    [
        {"constraints": x509.BasicConstraints(True, None)},
        {"constraints": x509.BasicConstraints(True, 1)},
        {"constraints": x509.BasicConstraints(False, None)},
        {"usage": LEAF_USAGE},
        {"signer": Identity.ephemeral().key},
        {"key": ec.generate_private_key(ec.SECP256R1())},
        {"key": rsa.generate_private_key(65537, 2048)},
        {"key": ed25519.Ed25519PrivateKey.generate()},
        {"subject": named((COMMON, "a/b"))},
        {"subject": named((COMMON, "authority"), (UNIT, "x"))},
        {"subject": named((COMMON, "authority"), (COMMON, "clinic"))},
        {"subject": named()},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_authorities_that_are_none(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage):
        Certificate.read(handmade(**changes)).check_authority()


def test_there_is_one_form_of_a_file() -> None:
    pem = certificate("clinic").pem
    assert Certificate.read(pem.replace(b"\n", b"\r\n")).pem == pem
    for content in (pem + pem, b"x\n" + pem, pem + b"x", b"", pem[:-30], b"\0" * MAX_BYTES):
        with pytest.raises(MalformedMessage):
            Certificate.read(content)
    with pytest.raises(MalformedMessage, match="at most"):
        Certificate.read(pem + b" " * MAX_BYTES)


CERTIFICATE = certificate("clinic").parsed.public_bytes(Encoding.DER)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_changed_certificate_passes(at: int, change: int) -> None:
    der = bytearray(CERTIFICATE)
    der[at % len(der)] ^= change
    with pytest.raises(BlindsightError):
        Certificate.read(as_pem("CERTIFICATE", bytes(der))).check_issued_by(AUTHORITY.certificate)


def as_pem(label: str, der: bytes) -> bytes:
    text = base64.encodebytes(der).replace(b"\n", b"")
    lines = [text[i : i + 64] for i in range(0, len(text), 64)]
    begin, end = f"-----BEGIN {label}-----".encode(), f"-----END {label}-----".encode()
    return b"\n".join([begin, *lines, end, b""])


def test_the_authority_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "authority.pem"
    with pytest.raises(UsageError, match="cannot be read"):
        read_authority(path)
    path.write_bytes(AUTHORITY.certificate.pem)
    assert read_authority(path) == AUTHORITY.identity.public
    path.write_bytes(certificate("clinic").pem)
    with pytest.raises(MalformedMessage):
        read_authority(path)


# --- requests


def test_a_request_says_what_was_asked_for() -> None:
    made = CertificateRequest.make(CLINIC, "clinic", (*HOSTS, HOSTS[0]))
    assert CertificateRequest.read(made.pem) == made
    assert (made.name, made.hosts, made.identity) == ("clinic", HOSTS, CLINIC.public)
    assert CertificateRequest.read(CertificateRequest.make(BOB, "bob", ()).pem).hosts == ()
    with pytest.raises(UsageError, match="at most"):
        CertificateRequest.make(CLINIC, "clinic", [f"h{i}.example" for i in range(MAX_HOSTS + 1)])


def asking(
    subject: x509.Name | None = None,
    key: Any = CLINIC.key,
    names: list[x509.GeneralName] | None = None,
    more: x509.ExtensionType | None = None,
) -> bytes:
    """A request as openssl could make it."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        named((COMMON, "clinic")) if subject is None else subject
    )
    if names is not None:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if more is not None:
        builder = builder.add_extension(more, critical=False)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA384()
    return builder.sign(key, algorithm).public_bytes(Encoding.PEM)


def test_a_request_of_another_tool_is_taken() -> None:
    found = CertificateRequest.read(asking(names=[x509.DNSName("clinic.example.org")]))
    assert (found.name, found.hosts) == ("clinic", ("clinic.example.org",))


@pytest.mark.parametrize(
    "made",
    [
        {"key": ec.generate_private_key(ec.SECP256R1())},
        {"key": rsa.generate_private_key(65537, 2048)},
        {"key": ed25519.Ed25519PrivateKey.generate()},
        {"subject": named((COMMON, "Clinic"))},
        {"subject": named((COMMON, "../../etc"))},
        {"subject": named((COMMON, "clinic\n"))},
        {"subject": named((COMMON, "сlinic"))},  # noqa: RUF001 - a Cyrillic letter
        {"subject": named()},
        {"subject": named((COMMON, "clinic"), (NameOID.ORGANIZATION_NAME, "lab"))},
        {"subject": named((COMMON, "clinic"), (COMMON, "museum"))},
        {"names": [x509.DNSName("*.example.org")]},
        {"names": [x509.DNSName(member_host("museum"))]},
        {"names": [x509.DNSName("Clinic.example.org")]},
        {"names": [x509.DNSName("127.1")]},
        {"names": [x509.UniformResourceIdentifier("spiffe://x/y")]},
        {"names": [x509.IPAddress(ipaddress.ip_network("10.0.0.0/8"))]},
        {"names": [x509.DNSName(f"h{i}.example") for i in range(MAX_HOSTS + 1)]},
        {"more": x509.BasicConstraints(True, None)},
        {"more": LEAF_USAGE},
    ],
    ids=lambda made: f"{next(iter(made))}",
)
def test_requests_with_tricks_are_refused(made: dict[str, Any]) -> None:
    with pytest.raises(MalformedMessage, match=r"request|on the curve P-384"):
        CertificateRequest.read(asking(**made))


def test_a_request_that_its_key_did_not_sign_is_refused() -> None:
    """Else one could enrol another's public key as one's own."""
    der = x509.load_pem_x509_csr(asking()).public_bytes(Encoding.DER)
    other = der.replace(CLINIC.public.der, BOB.public.der)
    assert other != der
    with pytest.raises(MalformedMessage, match="does not have the key"):
        CertificateRequest.read(as_pem("CERTIFICATE REQUEST", other))


REQUEST = x509.load_pem_x509_csr(asking()).public_bytes(Encoding.DER)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 10_000), st.integers(1, 255))
def test_no_changed_request_passes(at: int, change: int) -> None:
    der = bytearray(REQUEST)
    der[at % len(der)] ^= change
    with pytest.raises(BlindsightError):
        CertificateRequest.read(as_pem("CERTIFICATE REQUEST", bytes(der)))


# --- hosts


@pytest.mark.parametrize("host", ["localhost", "a.b-c.example", "192.0.2.1", "::1", "1a.example"])
def test_hosts_that_are_taken(host: str) -> None:
    assert check_host(host) == host
    assert is_address(host) is (host in ("192.0.2.1", "::1"))
    assert parse_endpoint(endpoint(host, 8443)) == (host, 8443)


BAD = ["", ".", "a..b", "a.", "-a", "a-", "*", "A", "a b", "a/b", "1.2.3", "a.1", "a:1", "a\n", "é"]


@pytest.mark.parametrize(
    "host", [*BAD, "x" * 64, "a." * 130 + "a", "m.blindsight.internal", "::1%1"]
)
def test_hosts_that_are_none(host: str) -> None:
    with pytest.raises(UsageError, match="host"):
        check_host(host)


@pytest.mark.parametrize(
    "text", ["a", "a:", ":1", "a:0", "a:65536", "a:-1", "a:1e3", "a:²", "a:" + "0" * 5000, "::1"]
)
def test_endpoints_that_are_none(text: str) -> None:
    with pytest.raises(UsageError):
        parse_endpoint(text)
