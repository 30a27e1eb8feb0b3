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

from client.institution.packed import PackedIndex
from client.institution.question import Question
from protocol.packing import Layout
from protocol.scheme import EncryptedScores, Seeded

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
