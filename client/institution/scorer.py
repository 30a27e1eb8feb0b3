"""The institution's one verb: score encrypted questions against the packed index.

Only public arithmetic happens here, in NumPy and numba: no byte of a searcher ever reaches a
C++ deserialiser, SEAL is never loaded, and the GIL is free while the index is scanned.
Re-randomisation and flooding are part of scoring, not an option: a product that is not
re-randomised gives the institution's embeddings away (docs/security.md, ratio leak).

Questions that arrive while a pass over the index goes on wait for its end and then share the
next one: a lone question does not wait at all, nobody waits longer than the passes before it, and
under load the index is read from memory once for up to eight of them.
"""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from queue import SimpleQueue

from client.institution.packed import PackedIndex
from client.institution.question import Batch, Question
from client.institution.segments import PackedSegments
from protocol.packing import Layout
from protocol.scheme import EncryptedScores, Seeded

RUN_BLOCKS = 8
"""Blocks in one unit of work, and in one message, at most: they share the question's lines."""

MAX_TOGETHER = 8
"""Questions in one pass."""


class Scorer:
    """Scores questions against one packed index on its own threads."""

    def __init__(self, index: PackedIndex | PackedSegments, threads: int | None = None) -> None:
        self._index = index
        self._threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads, "score")
        self._conductor = ThreadPoolExecutor(1, "pass")
        self._lock = threading.Lock()
        self._waiting: deque[_Asked] = deque()
        self._passing = False

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
        expanded here from their seeds. Work stops soon after ``active()`` turns false or the
        iterator is closed. At most one whole reply waits in memory for a slow reader.
        """
        asked = _Asked(Question(self.layout, public_keys, chunks), active)
        with self._lock:
            self._waiting.append(asked)
            begin, self._passing = not self._passing, True
        if begin:
            self._conductor.submit(self._conduct)
        try:
            while (answer := asked.answers.get()) is not None:
                if isinstance(answer, BaseException):
                    raise answer
                yield answer
        finally:
            asked.left = True

    def close(self) -> None:
        """Stop the threads; whoever waits for an answer gets no more of it."""
        with self._lock:
            for asked in self._waiting:
                asked.left = True
        self._conductor.shutdown()
        self._pool.shutdown(cancel_futures=True)

    def _conduct(self) -> None:
        """Make passes over the index until nobody waits."""
        while True:
            with self._lock:
                count = min(len(self._waiting), MAX_TOGETHER)
                together = [self._waiting.popleft() for _ in range(count)]
                self._passing = bool(together)
            if not together:
                return
            end: BaseException | None = None
            try:
                self._pass(together)
            except BaseException as error:  # whatever it was, those who wait are told
                end = error
            for asked in together:
                asked.answers.put(end)

    def _pass(self, together: list["_Asked"]) -> None:
        pending: deque[tuple[list[_Asked], Future[list[EncryptedScores]]]] = deque()
        batch = Batch([asked.question for asked in together])
        try:
            for start, end in _runs(self.layout.blocks):
                still = [asked for asked in together if asked.waits()]
                if len(still) < len(together):
                    if not still:
                        return
                    together, batch = still, Batch([asked.question for asked in still])
                blocks = self._index.blocks[start:end]
                pending.append((together, self._pool.submit(batch.answer, blocks, start)))
                if len(pending) > 2 * self._threads:
                    _deliver(*pending.popleft())
            while pending:
                _deliver(*pending.popleft())
        finally:
            for _, future in pending:
                future.cancel()


class _Asked:
    """A question and where its answers go; None or an error ends them."""

    def __init__(self, question: Question, active: Callable[[], bool]) -> None:
        self.question = question
        self.answers: SimpleQueue[EncryptedScores | BaseException | None] = SimpleQueue()
        self.left = False
        self._active = active

    def waits(self) -> bool:
        """Say whether somebody still waits for the answers; once not, never again."""
        self.left = self.left or not self._active()
        return not self.left


def _runs(blocks: int) -> Iterator[tuple[int, int]]:
    """Cut blocks into runs; the first is half as long, so that a searcher can begin to decrypt."""
    start, end = 0, RUN_BLOCKS // 2
    while start < blocks:
        yield start, min(end, blocks)
        start, end = end, end + RUN_BLOCKS


def _deliver(together: list[_Asked], future: Future[list[EncryptedScores]]) -> None:
    for asked, answer in zip(together, future.result(), strict=True):
        asked.answers.put(answer)
