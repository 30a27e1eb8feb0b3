"""Masks: keystreams that are added to words and cancel, or are taken off again.

AES-256 in counter mode under a key that is used for nothing else. Words are little-endian and
wrap around: uint32 sums are modulo 2^32, uint64 sums modulo 2^64.
"""

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocol.secure_aggregation.keys import agree, derive

Words: TypeAlias = npt.NDArray[Any]
_BLOCK_BYTES = 16
#: What is encrypted and added at a time; it stays in a core's cache.
_CHUNK_BYTES = 1 << 18
_ZEROS = bytes(_CHUNK_BYTES)


@dataclass(slots=True)
class Masked:
    """``update``: uint32 [p], p may be 0; ``totals``: uint64 [k]. Masks are added in place."""

    update: Words
    totals: Words

    def add(self, key: bytes, sign: Literal[1, -1]) -> None:
        """Add the mask of ``key``, or take it off."""
        add_keystream(self.update, key, 0, sign)
        add_keystream(self.totals, key, 1, sign)

    def __iadd__(self, other: "Masked") -> "Masked":
        self.update += other.update
        self.totals += other.totals
        return self


def pair_key(private: bytes, public: bytes, circle: bytes, own: str, other: str) -> bytes:
    """The key of the mask between two institutions; both reckon the same one."""
    first, second = sorted((own, other))
    return agree(private, public, b"pairwise mask", circle, first.encode(), second.encode())


def pair_sign(own: str, other: str) -> Literal[1, -1]:
    """Who of the two adds their mask; the other takes it off, and in the sum it is gone."""
    return 1 if own < other else -1


def self_key(seed: bytes, circle: bytes, own: str) -> bytes:
    """The key of an institution's own mask."""
    return derive(seed, b"self mask", circle, own.encode())


def add_keystream(words: Words, key: bytes, stream: int, sign: Literal[1, -1]) -> None:
    """Add to uint32 or uint64 [n] in place; ``stream`` (a byte) tells a key's vectors apart."""
    size = words.dtype.itemsize
    start = bytes([stream]) + bytes(_BLOCK_BYTES - 1)
    encryptor = Cipher(algorithms.AES(key), modes.CTR(start)).encryptor()
    room = bytearray(_CHUNK_BYTES + _BLOCK_BYTES)
    chunk = np.frombuffer(room, words.dtype.newbyteorder("<"), _CHUNK_BYTES // size)
    for begin in range(0, words.size, chunk.size):
        part = words[begin : begin + chunk.size]
        encryptor.update_into(memoryview(_ZEROS)[: part.size * size], room)
        if sign == 1:
            part += chunk[: part.size]
        else:
            part -= chunk[: part.size]
