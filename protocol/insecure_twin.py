"""The scheme without its secret: same messages, same arithmetic, no privacy whatsoever.

It is CKKS under the secret key zero and without noise: ``c0`` is the message itself. With it a
test sees the protocol's logic alone. Never send anything of value through it.
"""

import secrets

import numpy as np
from numpy.typing import NDArray

from protocol.packing import Layout
from protocol.params import Preset
from protocol.ring import ring
from protocol.scheme import EncryptedScores, Scheme, SecretKey, Seeded, scores_from_residues
from protocol.seeds import SEED_BYTES


class InsecureTwin(Scheme):
    """Hands out keys that hide nothing."""

    def keygen(self, preset: Preset) -> SecretKey:
        """Make a key that is zero."""
        return _ZeroKey(preset)


class _ZeroKey(SecretKey):
    def __init__(self, preset: Preset) -> None:
        self._ring = ring(preset.ring_degree, preset.data_moduli)

    def prepare(self, count: int) -> None:
        """There is nothing to prepare."""

    def public_keys(self, count: int) -> list[Seeded]:
        return self.encrypt_query(np.zeros((count, self._ring.degree), np.int64))

    def encrypt_query(self, polynomials: NDArray[np.int64]) -> list[Seeded]:
        encoded = self._ring.encode(polynomials)
        return [Seeded(c0, secrets.token_bytes(SEED_BYTES)) for c0 in encoded]

    def decrypt_scores(self, layout: Layout, reply: EncryptedScores) -> NDArray[np.float64]:
        modulus = layout.preset.reply_modulus
        return scores_from_residues(layout, reply.lifted(layout.preset, modulus)[0], modulus)
