"""The institution's one verb: score an encrypted question against the packed index.

Only public arithmetic happens here, in NumPy and numba: no byte of a searcher ever reaches a
C++ deserialiser, SEAL is never loaded, and the GIL is free while the index is scanned.
Re-randomisation and flooding are part of scoring, not an option: a product that is not
re-randomised gives the institution's embeddings away (docs/security.md, ratio leak).
"""

import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property

import numpy as np

from client.institution.kernels import rerandomise, scan, switch_down
from client.institution.packed import PackedIndex, tile_width
from client.institution.randomness import Mask, Stream
from protocol.packing import Layout
from protocol.ring import U32, ring
from protocol.scheme import EncryptedScores, Seeded
from protocol.seeds import expand

RUN_BLOCKS = 8
"""Blocks in one unit of work and in one message: the question's tile is reused among them."""


class Scorer:
    """Scores questions against one packed index on its own threads."""

    def __init__(self, index: PackedIndex, threads: int | None = None) -> None:
        self._index = index
        self._threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads, "score")

    @property
    def layout(self) -> Layout:
        """How the index is packed."""
        return self._index.layout

    def score(
        self,
        public_keys: list[Seeded],
        chunks: list[Seeded],
        active: Callable[[], bool] = lambda: True,
    ) -> Iterator[EncryptedScores]:
        """Yield the encrypted scores of all blocks, in order, a run of blocks at a time.

        ``public_keys`` and the d1 ``chunks`` have been checked by ``protocol.wire``; ``a`` is
        expanded here from their seeds. Work stops soon after ``active()`` turns false.
        """
        question = Question(self.layout, public_keys, chunks)
        starts = range(0, self.layout.blocks, RUN_BLOCKS)
        pending: deque[Future[EncryptedScores]] = deque()
        try:
            for start in starts:
                if not active():
                    return
                blocks = self._index.blocks[start : start + RUN_BLOCKS]
                pending.append(self._pool.submit(question.answer, blocks, start))
                if len(pending) > 2 * self._threads:
                    yield pending.popleft().result()
            while pending:
                if not active():
                    return
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

    def close(self) -> None:
        """Stop the threads."""
        self._pool.shutdown(cancel_futures=True)


class Question:
    """One expanded question, in the form that the kernels read."""

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
