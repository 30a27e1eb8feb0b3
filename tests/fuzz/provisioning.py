"""Decoders of what parties send each other to join: requests, certificates, rosters, kits."""

import base64
import json
from random import Random

from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_pem_x509_csr

from protocol import certificates, hosts, identity, roster
from protocol.certificates import Certificate
from protocol.provisioning import certificate_request, kit
from protocol.provisioning.certificate_request import CertificateRequest
from protocol.provisioning.kit import Kit
from protocol.roster import Roster
from tests.fuzz.mutations import of_bytes, of_json
from tests.fuzz.target import MIB, Target
from tests.protocol import parties
from tests.protocol.parties import AUTHORITY, CLINIC

_SIGNER = AUTHORITY.identity


def _pem(label: str, der: bytes) -> bytes:
    text = base64.b64encode(der)
    lines = [text[i : i + 64] for i in range(0, len(text), 64)]
    return b"\n".join([b"-----BEGIN %b-----" % label.encode(), *lines,
                       b"-----END %b-----" % label.encode(), b""])  # fmt: skip


def _certificate(der: bytes) -> None:
    found = Certificate.read(_pem("CERTIFICATE", der))
    assert found.hosts is not None
    found.check_issued_by(AUTHORITY.certificate)


def _request(der: bytes) -> None:
    found = CertificateRequest.read(_pem("CERTIFICATE REQUEST", der))
    assert CertificateRequest.read(found.pem) == found
    assert CertificateRequest.check(found.name, found.hosts) == found.hosts


def _roster(data: bytes) -> None:
    found = Roster.from_json(data, _SIGNER.public)
    assert Roster.from_json(found.to_json(_SIGNER), _SIGNER.public) == found


def of_signed_roster(data: bytes, random: Random) -> bytes:
    """Change a roster, and most times sign what it became: the authority may be mad."""
    changed = of_json(data, random)
    try:
        found = json.loads(changed)
        found.pop("signature")
        signature = _SIGNER.sign(roster._PURPOSE, roster._canonical(found)).hex()
        return json.dumps(found | {"signature": signature}).encode()
    except Exception:  # whatever is wrong with it is the decoder's business
        return changed


def of_kit(data: bytes, random: Random) -> bytes:
    """Change the tar, or one file in it, and sign what it became."""
    try:
        files = kit._files(data)
    except Exception:
        return of_bytes(data, random)
    if random.random() < 0.3:
        return of_bytes(data, random)
    name = random.choice(list(files))
    change = of_json if name.endswith(".json") and random.random() < 0.8 else of_bytes
    files[name] = change(files[name], random)
    if name != "signature":
        del files["signature"]
        files["signature"] = _SIGNER.sign(kit._PURPOSE, kit._digest(files))
    return kit._tar(files)


_PARTS = (certificates, hosts, identity, roster)
_DEEP = b"[" * 100_000

TARGETS = {
    "certificate": Target(
        _certificate,
        lambda: [
            parties.certificate("clinic", hosts=("a.example", "::1")).parsed.public_bytes(
                Encoding.DER
            )
        ],
        of_bytes,
        _PARTS,
        worst=lambda: [b"\x30" * 12_000, b"0\x84\xff\xff\xff\xff" * 10, bytes(11_000)],
    ),
    "certificate_request": Target(
        _request,
        lambda: [
            load_pem_x509_csr(
                CertificateRequest.make(CLINIC, "clinic", ("a.example", "::1")).pem
            ).public_bytes(Encoding.DER)
        ],
        of_bytes,
        (certificate_request, *_PARTS),
        worst=lambda: [b"\x30" * 12_000],
    ),
    "roster": Target(
        _roster,
        lambda: [parties.roster().to_json(_SIGNER)],
        of_signed_roster,
        _PARTS,
        memory=64 * MIB,
        seconds=3.0,
        worst=lambda: [_DEEP, b"[" + b"1," * (2 * MIB - 2) + b"1]", b"9" * 4 * MIB],
    ),
    "startup_kit": Target(
        lambda data: Kit.from_bytes(data),
        lambda: [parties.kit().to_bytes(_SIGNER), parties.kit("bob").to_bytes(_SIGNER)],
        of_kit,
        (kit, *_PARTS),
        longest=16_384,
        worst=lambda: [bytes(kit.MAX_BYTES), b"kit.json".ljust(512, b"\0") * 9000, _DEEP],
    ),
}
