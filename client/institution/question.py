"""One encrypted question, expanded to the form that the kernels read."""

from functools import cached_property

import numpy as np

from client.institution.blocks import tile_width
from client.institution.kernels import rerandomise, scan, switch_down
from client.institution.randomness import Mask, Stream
from protocol.packing import Layout
from protocol.ring import U32, ring
from protocol.scheme import EncryptedScores, Seeded
from protocol.seeds import expand


class Question:
    """Multiplies packed blocks with the question and hides all but their scores."""

    def __init__(self, layout: Layout, public_keys: list[Seeded], chunks: list[Seeded]) -> None:
        preset = layout.preset
        self._layout = layout
        self._ring = ring(preset.ring_degree, preset.data_moduli)
        self._public = self._expanded(public_keys)
        pairs = self._expanded(chunks)
        split = pairs.reshape(*pairs.shape[:3], -1, tile_width(layout))
        self._chunks = np.ascontiguousarray(split.transpose(2, 3, 0, 1, 4))

    def _expanded(self, ciphertexts: list[Seeded]) -> U32:
        """Return (c0, a) of each ciphertext, uint32 [n, 2, k, N] in Montgomery form."""
        moduli, degree = self._layout.preset.data_moduli, self._ring.degree
        pairs = [np.stack([one.c0, expand(one.seed, degree, moduli)]) for one in ciphertexts]
        return self._ring.to_montgomery(np.stack(pairs))

    def answer(self, blocks: U32, start: int) -> EncryptedScores:
        """Score, re-randomise, flood and switch down packed blocks [m, k, N/T, d1, T]."""
        mask = Stream().mask(len(blocks), self._layout)
        return self.mask(start, self.multiply(blocks), mask)

    def multiply(self, blocks: U32) -> U32:
        """Return the sums of products uint32 [m, 2, k, N]: exact, and not yet fit to leave."""
        sums = np.empty((len(blocks), 2, *self._ring.roots.shape), np.uint32)
        scan(
            blocks,
            self._chunks,
            self._ring.moduli,
            self._ring.negated_inverses,
            self._ring.montgomery,
            sums,
        )
        return sums

    def mask(self, start: int, sums: U32, mask: Mask) -> EncryptedScores:
        """Hide everything but the scores, and switch down; ``sums`` is overwritten."""
        arithmetic, runs = self._ring, len(sums)
        rerandomise(
            sums,
            self._public,
            mask.ternary,
            arithmetic.moduli,
            arithmetic.negated_inverses,
            arithmetic.montgomery,
            arithmetic.roots,
            arithmetic.root_quotients,
        )
        c0 = np.empty((runs, self._layout.block_items), np.uint32)
        c1 = np.empty((runs, arithmetic.degree), np.uint32)
        switch_down(
            sums,
            mask.flood,
            mask.error,
            self._layout.chunk_width,
            arithmetic.moduli,
            self._inverses,
            arithmetic.inverse_roots,
            arithmetic.inverse_root_quotients,
            arithmetic.scale,
            c0,
            c1,
        )
        return EncryptedScores(start, c0, c1)

    @cached_property
    def _inverses(self) -> U32:
        moduli = self._layout.preset.data_moduli
        return np.array(
            [[pow(p, -1, q) if p != q else 0 for q in moduli] for p in moduli], np.uint32
        )
