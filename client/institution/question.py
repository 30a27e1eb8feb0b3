"""Encrypted questions, expanded to the form that the kernels read, one alone or several at once."""

from collections.abc import Sequence
from functools import cached_property

import numpy as np

from client.institution.dot import LINE
from client.institution.kernels import arrange, rerandomise, scan, switch_down
from client.institution.randomness import Mask, Stream
from protocol.ntt import U32, U64
from protocol.packing import Layout
from protocol.ring import ring
from protocol.scheme import EncryptedScores, Seeded
from protocol.seeds import expand


class Question:
    """One encrypted question to a packed index."""

    def __init__(
        self,
        layout: Layout,
        public_keys: list[Seeded],
        chunks: list[Seeded],
        score_bits: int | None = None,
    ) -> None:
        """Expand the seeds of what ``protocol.wire`` has checked.

        An answer leaves about ``score_bits`` bits of each score; all that there are by default.
        """
        preset = layout.preset
        self._score_bits = score_bits
        self._layout = layout
        self._ring = ring(preset.ring_degree, preset.data_moduli)
        pairs = self._ring.to_lane_order(np.stack([self._pair(key) for key in public_keys]))
        self._public = self._ring.to_montgomery(pairs)
        lines = preset.ring_degree // LINE
        self.lines: U32 = np.empty(
            (len(preset.data_moduli), lines, layout.chunks, 2, LINE), np.uint32
        )
        """The d1 chunks, uint32 [k, N/16, d1, 2, 16] in Montgomery form."""
        for number, chunk in enumerate(chunks):
            arrange(self._pair(chunk), number, self._ring.constants, self.lines)

    def _pair(self, ciphertext: Seeded) -> U32:
        """Return (c0, a) uint32 [2, k, N] in NTT form."""
        preset = self._layout.preset
        a = expand(ciphertext.seed, preset.ring_degree, preset.data_moduli)
        return np.stack([ciphertext.c0, a])

    def answer(self, blocks: U32, start: int) -> EncryptedScores:
        """Score, re-randomise, flood and switch down packed blocks [m, k, N/16, d1, 16]."""
        return Batch([self]).answer(blocks, start)[0]

    def multiply(self, blocks: U32) -> U32:
        """Return the sums uint32 [m, 2, k, N] in lane order: exact, and not yet fit to leave."""
        sums: U32 = Batch([self]).multiply(blocks)[0]
        return sums

    def mask(self, start: int, sums: U32, mask: Mask) -> EncryptedScores:
        """Hide everything but the scores, and switch down; ``sums`` is overwritten."""
        constants, preset = self._ring.constants, self._layout.preset
        rerandomise(sums, self._public, mask.ternary, constants)
        c0 = np.empty((len(sums), self._layout.block_items), np.uint32)
        c1 = np.empty((len(sums), preset.ring_degree), np.uint32)
        switch_down(
            sums,
            mask.flood,
            mask.coarse,
            self._steps,
            mask.error,
            constants,
            *self._inverses,
            preset.reply_moduli,
            c0,
            c1,
        )
        return EncryptedScores(start, c0, c1)

    def draw(self, blocks: int) -> Mask:
        """Draw the noise of ``blocks`` blocks from a stream of their own."""
        return Stream().mask(blocks, self._layout, self._score_bits)

    @cached_property
    def _steps(self) -> U32:
        """A coarse step of noise times 2^32 modulo each prime, uint32 [k]."""
        preset = self._layout.preset
        exponent = preset.flood_bits + 1 + 32
        return np.array([pow(2, exponent, q) for q in preset.data_moduli], np.uint32)

    @cached_property
    def _inverses(self) -> tuple[U32, U32]:
        """1/q_j mod q_i, uint32 [k, k], and the Shoup quotients."""
        moduli = self._layout.preset.data_moduli
        rows = [[pow(p, -1, q) if p != q else 0 for q in moduli] for p in moduli]
        quotients = [[(one << 32) // q for one, q in zip(row, moduli, strict=True)] for row in rows]
        return np.array(rows, np.uint32), np.array(quotients, np.uint32)


class Batch:
    """Questions that are answered in one pass: every block is read from memory once for all."""

    def __init__(self, questions: Sequence[Question]) -> None:
        """Put the questions, which are to one layout, side by side."""
        self._questions = questions
        stacked = np.stack([one.lines for one in questions]) if questions[1:] else None
        lines = questions[0].lines[None] if stacked is None else stacked
        self._chunks = lines.shape[3]
        self._lines: U64 = lines.reshape(*lines.shape[:2], -1).view(np.uint64)

    def multiply(self, blocks: U32) -> U32:
        """Return the sums uint32 [z, m, 2, k, N] of z questions and m packed blocks."""
        words: U64 = blocks.reshape(*blocks.shape[:2], -1).view(np.uint64)
        count, primes = self._lines.shape[:2]
        degree = blocks.shape[2] * LINE
        sums = np.empty((count, len(blocks), 2, primes, degree), np.uint32)
        constants = self._questions[0]._ring.constants
        scan(words, self._lines, self._chunks, constants, sums)
        return sums

    def answer(self, blocks: U32, start: int) -> list[EncryptedScores]:
        """Answer each question for packed blocks [m, k, N/16, d1, 16], the first ``start``."""
        return [
            question.mask(start, sums, question.draw(len(blocks)))
            for question, sums in zip(self._questions, self.multiply(blocks), strict=True)
        ]
