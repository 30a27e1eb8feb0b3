"""What a scheme does for a searcher: three verbs, whatever stands behind them.

``client.searcher.ckks.SealScheme`` encrypts; ``protocol.insecure_twin.InsecureTwin`` does not,
and sends the same messages, so that every protocol test runs with and without encryption.
The institution's side needs no scheme: its arithmetic is the same for both.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.compiled import kernel
from protocol.ntt import U32
from protocol.packing import Layout
from protocol.params import Preset


@dataclass(frozen=True, eq=False)
class Seeded:
    """A ciphertext (c0, a) in NTT form over the data primes; ``a`` is the seed's expansion."""

    c0: U32
    """uint32 [k, N]"""
    seed: bytes
    """64 bytes"""


@dataclass(frozen=True, eq=False)
class EncryptedScores:
    """Scores of m consecutive blocks, switched down and rounded, as coefficients."""

    first_block: int
    c0: U32
    """uint32 [m, N/d2], the score coefficients alone, of ``c0_bits`` each"""
    c1: U32
    """uint32 [m, N], of ``c1_bits`` each"""

    def every(self, step: int, start: int) -> "EncryptedScores":
        """Return every ``step``-th block from ``start`` on, as views."""
        return EncryptedScores(self.first_block, self.c0[start::step], self.c1[start::step])

    def lifted(self, preset: Preset, modulus: int) -> tuple[U32, U32]:
        """Return c0 and c1 as residues modulo ``modulus``, the nearest to what they say."""
        parts = ((self.c0, preset.c0_bits), (self.c1, preset.c1_bits))
        c0, c1 = (_lift(words, np.uint64(modulus), np.uint64(bits)) for words, bits in parts)
        return c0, c1


@kernel
def _lift(words, modulus, bits):  # type: ignore[no-untyped-def]
    """uint32 [m, n] of so many ``bits`` to the nearest multiples of modulus / 2^bits."""
    lifted, half = np.empty(words.shape, np.uint32), np.uint64(1) << (bits - np.uint64(1))
    for i in range(words.shape[0]):
        for j in range(words.shape[1]):
            lifted[i, j] = (np.uint64(words[i, j]) * modulus + half) >> bits
    return lifted


class SecretKey(Protocol):
    """A handle on one fresh key: used for one question to one institution, then dropped."""

    def prepare(self, count: int) -> None:
        """Do ahead what ``count`` ciphertexts take that depends on no message."""

    def public_keys(self, count: int) -> list[Seeded]:
        """Encrypt zero ``count`` times: with these an institution re-randomises its reply."""

    def encrypt_query(self, polynomials: NDArray[np.int64]) -> list[Seeded]:
        """Encrypt coefficients int64 [d1, N], one ciphertext each."""

    def decrypt_scores(self, layout: Layout, reply: EncryptedScores) -> NDArray[np.float64]:
        """Decrypt m blocks to scores float64 [m, N/d2].

        No decrypted value may ever go back to the institution:
        CKKS is IND-CPA, not IND-CPA-D (Li and Micciancio, EUROCRYPT 2021).
        """


class Scheme(Protocol):
    """Makes keys."""

    def keygen(self, preset: Preset) -> SecretKey:
        """Make a fresh key pair under ``preset``."""


def scores_from_residues(layout: Layout, residues: U32, modulus: int) -> NDArray[np.float64]:
    """Centre score residues, lifted to ``modulus``, and divide by their scale."""
    preset = layout.preset
    centred = residues.astype(np.int64)
    centred[centred > modulus // 2] -= modulus
    return centred / (preset.reply_scale * modulus / preset.reply_modulus)
