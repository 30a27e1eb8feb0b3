"""Who a party is: one elliptic-curve key (P-384) that it made itself and never shows.

The same key stands behind a party's certificate (TLS), its node in Flower and its signatures, so
there is one fingerprint to compare out of band. What is signed is told apart by its purpose: a
signature for one purpose verifies for no other, and none can be mistaken for TLS's or Flower's.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.errors import MalformedMessage, UsageError
from protocol.files import read_bounded, storage_error, sync_folder

_CURVE = ec.SECP384R1
_SIGNING = ec.ECDSA(hashes.SHA384())
_MAX_KEY_BYTES = 4096
_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
_HINT = "name a private key in PEM form on the curve P-384, as blindsight makes them"


@dataclass(frozen=True, slots=True)
class PublicIdentity:
    """A party as others know it: ``der`` is its SubjectPublicKeyInfo, 120 bytes."""

    der: bytes

    @classmethod
    def read(cls, der: bytes) -> "PublicIdentity":
        """Check foreign bytes. Raises MalformedMessage unless they are a key on P-384."""
        if len(der) != 120:
            raise MalformedMessage(f"public key: expected 120 bytes, got {len(der)}")
        try:
            key = serialization.load_der_public_key(der)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise MalformedMessage("public key: its 120 bytes are no key on P-384") from error
        return cls.of(key)

    @classmethod
    def of(cls, key: object) -> "PublicIdentity":
        """The identity of a public key of ``cryptography``. Raises MalformedMessage."""
        if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, _CURVE):
            raise MalformedMessage("public key: expected one on the curve P-384")
        encoding, form = serialization.Encoding.DER, serialization.PublicFormat
        return cls(key.public_bytes(encoding, form.SubjectPublicKeyInfo))

    @property
    def key(self) -> ec.EllipticCurvePublicKey:
        """The key itself, as ``cryptography`` has it."""
        key = serialization.load_der_public_key(self.der)
        assert isinstance(key, ec.EllipticCurvePublicKey)
        return key

    @property
    def fingerprint(self) -> str:
        """SHA-256 of ``der``, for people to compare: 16 groups of four hexadecimal digits."""
        digest = hashes.Hash(hashes.SHA256())
        digest.update(self.der)
        text = digest.finalize().hex()
        return ":".join(text[start : start + 4] for start in range(0, 64, 4))

    def verifies(self, purpose: str, message: bytes, signature: bytes) -> bool:
        """Whether this party signed ``message`` for ``purpose``."""
        try:
            self.key.verify(signature, _signed(purpose, message), _SIGNING)
        except InvalidSignature:
            return False
        return True


class Identity:
    """A party's own key. Can sign, and be neither printed nor pickled."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self._key = key
        self.public = PublicIdentity.of(key.public_key())

    @classmethod
    def ephemeral(cls) -> "Identity":
        """A new key that lives in memory only."""
        return cls(ec.generate_private_key(_CURVE()))

    @classmethod
    def create(cls, path: Path, passphrase: bytes | None = None) -> "Identity":
        """Make a key and keep it at ``path`` (PEM, mode 0600); it is there when this returns.

        With a ``passphrase`` the file is encrypted, in the best way that ``cryptography`` knows.

        Raises UsageError if the file exists: a key is never overwritten. StorageError.
        """
        made = cls.ephemeral()
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Not by a rename: that would replace a key that is there.
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
                file.write(made.private_pem(passphrase))
                file.flush()
                os.fsync(file.fileno())
            sync_folder(path.parent)
        except FileExistsError as error:
            raise UsageError(
                f"{path} exists: a private key is never overwritten",
                "Go on with the key that is there, or name another folder.",
            ) from error
        except OSError as error:
            raise storage_error(path, error) from error
        return made

    @classmethod
    def load(cls, path: Path, ask: Callable[[], bytes] | None = None) -> "Identity":
        """Read the key kept at ``path``. Raises UsageError, saying why it is of no use.

        ``ask`` gives the passphrase, and is called for a key that has one.
        """
        try:
            content = read_bounded(path, _MAX_KEY_BYTES, _HINT)
            passphrase = ask() if ask is not None and _ENCRYPTED in content else None
            key = serialization.load_pem_private_key(content, passphrase)
            if not isinstance(key, ec.EllipticCurvePrivateKey):
                raise ValueError("no elliptic-curve key")
            return cls(key)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}", _HINT) from error
        except (ValueError, TypeError, UnsupportedAlgorithm, MalformedMessage) as error:
            if _ENCRYPTED in content:
                raise UsageError(
                    f"{path} has a passphrase, and "
                    + ("none was given" if passphrase is None else "it is another one"),
                    "Give the passphrase of this very key.",
                ) from error
            raise UsageError(f"{path} holds no private key on P-384", _HINT) from error

    @staticmethod
    def is_encrypted(path: Path) -> bool:
        """Whether the key kept at ``path`` has a passphrase. Raises UsageError."""
        try:
            return _ENCRYPTED in read_bounded(path, _MAX_KEY_BYTES, _HINT)
        except OSError as error:
            raise UsageError(f"{path} cannot be read: {error.strerror}", _HINT) from error

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        """The key itself, for certificates and requests."""
        return self._key

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Sign ``message`` for ``purpose`` (ECDSA, SHA-384); at most 104 bytes."""
        return self._key.sign(_signed(purpose, message), _SIGNING)

    def private_pem(self, passphrase: bytes | None = None) -> bytes:
        """The secret key as PKCS #8, for the one file that keeps it."""
        hidden: serialization.KeySerializationEncryption = serialization.NoEncryption()
        if passphrase is not None:
            hidden = serialization.BestAvailableEncryption(passphrase)
        return self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, hidden
        )

    def __repr__(self) -> str:
        return f"Identity({self.public.fingerprint})"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a private key is not pickled")


def _signed(purpose: str, message: bytes) -> bytes:
    return b"blindsight/1/" + purpose.encode() + b"\0" + message
