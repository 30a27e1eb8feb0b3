"""A party's key: one file that is never overwritten, signatures that are good for one purpose."""

import os
import pickle
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import BlindsightError, MalformedMessage, UsageError
from protocol.identity import Identity, PublicIdentity

ONE, OTHER = Identity.ephemeral(), Identity.ephemeral()


def test_a_key_is_kept_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = Identity.create(tmp_path / "identity/private-key.pem")
    finally:
        os.umask(before)
    assert (tmp_path / "identity").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "identity/private-key.pem").stat().st_mode & 0o777 == 0o600
    assert Identity.load(tmp_path / "identity/private-key.pem").public == made.public


@pytest.mark.parametrize("there", ["key", "empty", "link"])
def test_a_key_is_never_overwritten(tmp_path: Path, there: str) -> None:
    path = tmp_path / "private-key.pem"
    if there == "key":
        Identity.create(path)
    elif there == "empty":
        path.touch()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    before = path.read_bytes() if path.exists() else None
    with pytest.raises(UsageError, match="never overwritten"):
        Identity.create(path)
    assert (path.read_bytes() if path.exists() else None) == before
    assert not (tmp_path / "elsewhere").exists()


def test_a_signature_is_good_for_one_purpose_one_message_and_one_party() -> None:
    signature = ONE.sign("roster", b"message")
    assert ONE.public.verifies("roster", b"message", signature)
    assert len(signature) <= 104
    assert not ONE.public.verifies("roster", b"messagf", signature)
    assert not ONE.public.verifies("roste", b"r\0message", signature)
    assert not ONE.public.verifies("roster", b"message", signature[:-1])
    assert not ONE.public.verifies("roster", b"message", b"")
    assert not OTHER.public.verifies("roster", b"message", signature)


@settings(deadline=None, max_examples=50)
@given(st.binary(max_size=130))
def test_any_signature_is_judged_and_any_key_taken_or_refused(data: bytes) -> None:
    assert not ONE.public.verifies("roster", b"message", data)
    with pytest.raises(BlindsightError):
        PublicIdentity.read(data)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 119), st.integers(1, 255))
def test_a_changed_key_is_another_or_none(at: int, change: int) -> None:
    changed = bytearray(ONE.public.der)
    changed[at] ^= change
    try:
        found = PublicIdentity.read(bytes(changed))
    except MalformedMessage:
        return
    assert found != ONE.public
    assert found.der == bytes(changed)


def foreign_keys() -> list[bytes]:
    keys = [
        ec.generate_private_key(ec.SECP256R1()),
        rsa.generate_private_key(65537, 2048),
        ec.generate_private_key(ec.SECP521R1()),
    ]
    form = PublicFormat.SubjectPublicKeyInfo
    return [one.public_key().public_bytes(Encoding.DER, form) for one in keys]


@pytest.mark.parametrize("der", foreign_keys(), ids=["P-256", "RSA", "P-521"])
def test_keys_of_other_kinds_are_refused(der: bytes) -> None:
    with pytest.raises(MalformedMessage, match="public key"):
        PublicIdentity.read(der)
    with pytest.raises(MalformedMessage, match="public key"):
        PublicIdentity.read(der.ljust(120, b"\0")[:120])


def test_a_fingerprint_is_the_hash_that_openssl_shows() -> None:
    groups = ONE.public.fingerprint.split(":")
    assert [len(one) for one in groups] == [4] * 16
    assert ONE.public.fingerprint != OTHER.public.fingerprint
    assert PublicIdentity.of(ONE.public.key) == ONE.public


def test_what_is_no_private_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "private-key.pem"
    with pytest.raises(UsageError, match="No such file"):
        Identity.load(path)
    locked = ONE.key.private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    small = ec.generate_private_key(ec.SECP256R1())
    other = small.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for content in (b"", b"nothing", locked, other, b"x" * 5000):
        path.write_bytes(content)
        with pytest.raises(UsageError):
            Identity.load(path)


def test_a_key_is_neither_printed_nor_pickled() -> None:
    secret = f"{ONE.key.private_numbers().private_value:x}"
    assert secret not in repr(ONE) and secret not in str(ONE)
    assert ONE.public.fingerprint in repr(ONE)
    with pytest.raises(TypeError):
        pickle.dumps(ONE)
