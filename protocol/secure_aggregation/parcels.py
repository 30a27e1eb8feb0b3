"""Shares of an institution's two secrets, encrypted for one other institution.

Beside them the sender shows the hash of each share, so that the coordinator can later tell who
opened a share that was not dealt. The receiver checks the same: it holds nothing that it could be
blamed for.
"""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.errors import MalformedMessage
from protocol.secure_aggregation.fields import expect_size, join_fields, split_fields
from protocol.secure_aggregation.keys import EphemeralKeys, agree
from protocol.secure_aggregation.roll import Roll
from protocol.secure_aggregation.session import MAX_PARTICIPANTS
from protocol.secure_aggregation.shamir import SHARE_BYTES, split

_NONCE_BYTES = 12
_TAG_BYTES = 16
_HASH_BYTES = 32
_SEALED_BYTES = _NONCE_BYTES + 2 * SHARE_BYTES + _TAG_BYTES


@dataclass(frozen=True, slots=True, repr=False)
class Shares:
    """What one institution holds of another's ``seed`` and of its ``mask`` key: 33 bytes each."""

    seed: bytes
    mask: bytes

    def commitments(self, roll: Roll, sender: str, receiver: str) -> bytes:
        """The hashes of both, 64 bytes. Shares of random secrets are random: a hash hides them."""
        about = join_fields([roll.digest, sender.encode(), receiver.encode()])
        return b"".join(commit_share(about, one) for one in (self.seed, self.mask))


@dataclass(frozen=True, slots=True)
class Parcel:
    """``sealed`` for ``receiver``'s eyes; ``commitments`` for all."""

    sender: str
    receiver: str
    sealed: bytes
    commitments: bytes

    def open(self, roll: Roll, keys: EphemeralKeys) -> Shares:
        """By its receiver. Raises MalformedMessage naming the sender, if it is not as it should."""
        about = join_fields([roll.digest, self.sender.encode(), self.receiver.encode()])
        key = agree(keys.share, roll.find(self.sender).share_key, b"shares", about)
        try:
            plain = AESGCM(key).decrypt(
                self.sealed[:_NONCE_BYTES], self.sealed[_NONCE_BYTES:], about
            )
        except InvalidTag as error:
            raise MalformedMessage(
                f"the shares from {self.sender} cannot be opened: they were changed on their way, "
                "or it was shown another list of participants"
            ) from error
        shares = Shares(plain[:SHARE_BYTES], plain[SHARE_BYTES:])
        if shares.commitments(roll, self.sender, self.receiver) != self.commitments:
            raise MalformedMessage(f"the shares from {self.sender} are not what it shows of them")
        return shares


def deal(
    roll: Roll, sender: str, keys: EphemeralKeys, random: Callable[[int], bytes]
) -> tuple[list[Parcel], Shares]:
    """A parcel for each other participant, and the sender's own shares. Once in a session."""
    count = len(roll.shown)
    seeds = split(keys.seed, roll.threshold, count, random)
    masks = split(keys.mask, roll.threshold, count, random)
    parcels: list[Parcel] = []
    for one, seed, mask in zip(roll.shown, seeds, masks, strict=True):
        shares = Shares(seed, mask)
        if one.name == sender:
            own = shares
            continue
        about = join_fields([roll.digest, sender.encode(), one.name.encode()])
        nonce = random(_NONCE_BYTES)
        key = agree(keys.share, one.share_key, b"shares", about)
        sealed = nonce + AESGCM(key).encrypt(nonce, seed + mask, about)
        commitments = shares.commitments(roll, sender, one.name)
        parcels.append(Parcel(sender, one.name, sealed, commitments))
    return parcels, own


def commit_share(about: bytes, share: bytes) -> bytes:
    """The hash of one share, 32 bytes."""
    return hashlib.sha256(
        join_fields([b"blindsight/1/secure-aggregation/share", about, share])
    ).digest()


def join_parcels(parcels: Iterable[Parcel]) -> bytes:
    """Parcels in one byte string."""
    return join_fields(
        join_fields([one.sender.encode(), one.receiver.encode(), one.sealed, one.commitments])
        for one in parcels
    )


def read_parcels(content: object, least: int = 1) -> list[Parcel]:
    """Undoes ``join_parcels``: ``least`` or more. Raises MalformedMessage."""
    parcels: list[Parcel] = []
    for field in split_fields(content, "parcels", range(least, MAX_PARTICIPANTS), 400):
        sender, receiver, sealed, commitments = split_fields(field, "parcel", range(4, 5), 110)
        if not (sender + receiver).isascii():
            raise MalformedMessage("parcel: sender or receiver is no name for a party")
        expect_size(sealed, _SEALED_BYTES, "parcel")
        expect_size(commitments, 2 * _HASH_BYTES, "parcel")
        parcels.append(Parcel(sender.decode(), receiver.decode(), sealed, commitments))
    return parcels
