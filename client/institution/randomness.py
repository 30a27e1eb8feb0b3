"""The noise that hides an institution's embeddings (docs/protocol.md section 6).

Bytes come from AES-256 in counter mode under a key from the operating system; one stream
serves one reply and is then dropped, so no two replies share randomness.
"""

import os
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocol.compiled import kernel
from protocol.packing import Layout

_U64_BITS = 64


@dataclass(frozen=True, eq=False)
class Mask:
    """What re-randomises and floods m blocks: ``Enc_pk(0)`` and the flooding noise.

    ``ternary`` int8 [m, keys, N] in {-1, 0, 1}; ``error`` int8 [m, N] for c1; ``flood`` int64
    [m, N/d2] for the score coefficients of c0, with their own error added; ``coarse`` int32
    [m, N/d2] is added to them in steps of 2^(flood_bits + 1), where a score is to be less exact.
    """

    ternary: NDArray[np.int8]
    error: NDArray[np.int8]
    flood: NDArray[np.int64]
    coarse: NDArray[np.int32]


class Stream:
    """A stream of cryptographic randomness, exact in distribution; not for two threads."""

    def __init__(self) -> None:
        self._stream = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()

    def mask(self, blocks: int, layout: Layout, score_bits: int | None = None) -> Mask:
        """Draw the noise of ``blocks`` blocks; a score is left about ``score_bits`` bits.

        Flooding and coarse noise together are uniform over ±2^-score_bits of a score (section 6.4
        of docs/protocol.md): never less than the flooding alone.
        """
        degree, scores, keys = layout.preset.ring_degree, layout.block_items, layout.public_keys
        flood = self.uniform(blocks * scores, layout.preset.flood_bits)
        coarse = np.zeros((blocks, scores), np.int32)
        steps = -1 if score_bits is None else layout.preset.coarse_bits(score_bits)
        if steps >= 0:
            # [0, 2^(flood+1)) tiles what lies between two coarse steps.
            flood += 1 << layout.preset.flood_bits
            coarse = self.uniform(blocks * scores, steps).astype(np.int32).reshape(blocks, scores)
        flood += self.centred_binomial(blocks * scores)
        return Mask(
            self.ternary(blocks * keys * degree).reshape(blocks, keys, degree),
            self.centred_binomial(blocks * degree).reshape(blocks, degree),
            flood.reshape(blocks, scores),
            coarse,
        )

    def ternary(self, count: int) -> NDArray[np.int8]:
        """Draw int8 [count], uniform over {-1, 0, 1}; the byte 255 is rejected, so exactly."""
        kept = np.empty(0, np.uint8)
        while kept.size < count:
            drawn = self._bytes(count - kept.size + count // 64 + 64)
            kept = np.concatenate([kept, drawn[drawn != 255]])
        return (kept[:count] % np.uint8(3)).astype(np.int8) - np.int8(1)

    def centred_binomial(self, count: int) -> NDArray[np.int8]:
        """Draw int8 [count], the difference of two sums of 21 bits: variance 10.5, as in SEAL."""
        out = np.empty(count, np.int8)
        _centred_binomial(self._bytes(8 * count).view(np.uint64), out)
        return out

    def uniform(self, count: int, bits: int) -> NDArray[np.int64]:
        """Draw int64 [count], uniform over [-2^bits, 2^bits), bits below 63."""
        words = self._bytes(8 * count).view(np.uint64) >> np.uint64(_U64_BITS - 1 - bits)
        return words.astype(np.int64) - (1 << bits)

    def _bytes(self, count: int) -> NDArray[np.uint8]:
        return np.frombuffer(self._stream.update(bytes(count)), np.uint8)


@kernel
def _centred_binomial(words, out):  # type: ignore[no-untyped-def]
    mask = np.uint64((1 << 21) - 1)
    for i in range(words.size):
        out[i] = _ones(words[i] & mask) - _ones((words[i] >> np.uint64(21)) & mask)


@kernel
def _ones(word):  # type: ignore[no-untyped-def]
    word = word - ((word >> np.uint64(1)) & np.uint64(0x5555555555555555))
    word = (word & np.uint64(0x3333333333333333)) + (
        (word >> np.uint64(2)) & np.uint64(0x3333333333333333)
    )
    word = (word + (word >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return np.int64((word * np.uint64(0x0101010101010101)) >> np.uint64(56))
