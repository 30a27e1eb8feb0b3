"""An institution's secrets of one session, and what it shows of them under its signature.

Two key pairs on X25519 (RFC 7748), as in the paper: of ``mask`` the pairwise masks come, and it is
what the coordinator may be given back when its owner drops out; ``share`` encrypts shares and is
given to nobody. ``seed`` makes the institution's own mask. All are new for every session.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.errors import MalformedMessage, UsageError
from protocol.identity import Identity, PublicIdentity
from protocol.roster import check_name
from protocol.secure_aggregation.fields import expect_size, join_fields, split_fields
from protocol.secure_aggregation.session import Session

KEY_BYTES = 32
_SIGNATURE_BYTES = 104
_PURPOSE = "secure-aggregation/keys"


@dataclass(frozen=True, slots=True)
class Advertisement:
    """What an institution shows: two public keys, the hash of its seed, and its signature.

    ``equal`` says that it keeps its number of examples to itself; then all weigh the same.
    """

    name: str
    mask_key: bytes
    share_key: bytes
    commitment: bytes
    equal: bool
    signature: bytes = b""

    @property
    def content(self) -> bytes:
        """Everything but the signature."""
        flag = b"\1" if self.equal else b"\0"
        return join_fields(
            [self.name.encode(), self.mask_key, self.share_key, self.commitment, flag]
        )

    def to_bytes(self) -> bytes:
        """Undone by ``read``."""
        return join_fields([self.content, self.signature])

    @classmethod
    def read(cls, content: object) -> "Advertisement":
        """Foreign bytes, not yet verified. Raises MalformedMessage."""
        signed, signature = split_fields(content, "advertisement", range(2, 3), 256)
        fields = split_fields(signed, "advertisement", range(5, 6), 63)
        try:
            name = check_name(fields[0].decode("ascii"))
        except (UnicodeDecodeError, UsageError) as error:
            raise MalformedMessage("advertisement: its name is no name for a party") from error
        if fields[4] not in (b"\0", b"\1") or len(signature) > _SIGNATURE_BYTES:
            raise MalformedMessage("advertisement: its flag or its signature is none")
        keys = [expect_size(field, KEY_BYTES, "advertisement") for field in fields[1:4]]
        return cls(name, keys[0], keys[1], keys[2], fields[4] == b"\1", signature)

    def signed_by(self, identity: PublicIdentity, session: Session) -> bool:
        """Whether the party with this identity said so, for this session."""
        return identity.verifies(_PURPOSE, _signed(session, self), self.signature)


@dataclass(frozen=True, slots=True, repr=False)
class EphemeralKeys:
    """The secrets: 32 bytes each. Drop them when the session is over; neither print nor pickle."""

    mask: bytes
    share: bytes
    seed: bytes

    @classmethod
    def create(cls, random: Callable[[int], bytes]) -> "EphemeralKeys":
        """New ones; ``random`` gives bytes from the operating system."""
        return cls(random(KEY_BYTES), random(KEY_BYTES), random(KEY_BYTES))

    def to_bytes(self) -> bytes:
        """For the memory of the institution's own node alone."""
        return self.mask + self.share + self.seed

    @classmethod
    def from_bytes(cls, content: bytes) -> "EphemeralKeys":
        """Undoes ``to_bytes``."""
        return cls(content[:KEY_BYTES], content[KEY_BYTES : 2 * KEY_BYTES], content[-KEY_BYTES:])

    def advertise(
        self, session: Session, identity: Identity, name: str, equal: bool
    ) -> Advertisement:
        """What others may know of them, signed."""
        shown = Advertisement(
            name, public_key(self.mask), public_key(self.share), commit_seed(self.seed), equal
        )
        return replace(shown, signature=identity.sign(_PURPOSE, _signed(session, shown)))

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("keys are not pickled")


def public_key(private: bytes) -> bytes:
    """The public half of a key on X25519."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def commit_seed(seed: bytes) -> bytes:
    """What tells a right seed from a wrong one; says nothing of 32 random bytes."""
    return hashlib.sha256(b"blindsight/1/secure-aggregation/seed\0" + seed).digest()


def agree(private: bytes, public: bytes, *info: bytes) -> bytes:
    """A key of 32 bytes that the two owners share: X25519, then HKDF-SHA-256 over ``info``.

    Raises MalformedMessage for a public key that gives every private key the same secret.
    """
    try:
        secret = X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError as error:
        raise MalformedMessage("public key: it is a point of small order") from error
    return derive(secret, *info)


def derive(secret: bytes, *info: bytes) -> bytes:
    """A key of 32 bytes by HKDF-SHA-256 (RFC 5869)."""
    return HKDF(hashes.SHA256(), 32, None, join_fields(info)).derive(secret)


def _signed(session: Session, shown: Advertisement) -> bytes:
    return join_fields([session.label, shown.content])
