"""The institution's one verb: score encrypted questions against the packed index.

Only public arithmetic happens here, in NumPy and numba: no byte of a searcher ever reaches a
C++ deserialiser, SEAL is never loaded, and the GIL is free while the index is scanned.
Re-randomisation and flooding are part of scoring, not an option: a product that is not
re-randomised gives the institution's embeddings away (docs/security.md, ratio leak).

Questions that arrive while a pass over the index goes on wait for its end and then share the
next one: a lone question does not wait at all, nobody waits longer than the passes before it, and
under load the index is read from memory once for up to eight of them. Each searcher has a queue of
its own, and passes take from the queues in turn: who asks much waits for himself.
"""

import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
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


Answers = SimpleQueue[tuple[int, EncryptedScores | BaseException | None]]


class Scorer:
    """Scores questions against one packed index on its own threads."""

    def __init__(
        self,
        index: PackedIndex | PackedSegments,
        threads: int | None = None,
        together: int = MAX_TOGETHER,
    ) -> None:
        """Answer at most ``together`` questions in one pass."""
        self._index, self._together = index, together
        self._threads = threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._threads, "score")
        self._conductor = ThreadPoolExecutor(1, "pass")
        self._lock = threading.Lock()
        self._waiting: OrderedDict[str, deque[_Asked]] = OrderedDict()
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
        searcher: str = "",
        score_bits: int | None = None,
    ) -> Iterator[EncryptedScores]:
        """Yield the encrypted scores of all blocks, in order, a run of blocks at a time.

        ``public_keys`` and the d1 ``chunks`` have been checked by ``protocol.wire``; ``a`` is
        expanded here from their seeds. Work stops soon after ``active()`` turns false or the
        iterator is closed. At most one whole reply waits in memory for a slow reader.
        ``searcher`` says whose turn it takes, ``score_bits`` how exact a score may be.
        """
        asked = [(public_keys, chunks)]
        with closing(self.screen(asked, active, searcher, score_bits)) as answers:
            for _, answer in answers:
                yield answer

    def screen(
        self,
        questions: Sequence[tuple[list[Seeded], list[Seeded]]],
        active: Callable[[], bool] = lambda: True,
        searcher: str = "",
        score_bits: int | None = None,
    ) -> Generator[tuple[int, EncryptedScores], None, None]:
        """Answer several questions as ``score`` does one, in one pass where nobody else waits.

        Yields the number of a question with each run of its blocks.
        """
        answers: Answers = SimpleQueue()
        together = [
            _Asked(number, Question(self.layout, *question, score_bits), active, answers)
            for number, question in enumerate(questions)
        ]
        with self._lock:
            self._waiting.setdefault(searcher, deque()).extend(together)
            begin, self._passing = not self._passing, True
        if begin:
            self._conductor.submit(self._conduct)
        try:
            left = len(together)
            while left:
                number, answer = answers.get()
                if isinstance(answer, BaseException):
                    raise answer
                if answer is None:
                    left -= 1
                else:
                    yield number, answer
        finally:
            for asked in together:
                asked.left = True

    def close(self) -> None:
        """Stop the threads; whoever waits for an answer gets no more of it."""
        with self._lock:
            for queue in self._waiting.values():
                for asked in queue:
                    asked.left = True
        self._conductor.shutdown()
        self._pool.shutdown(cancel_futures=True)

    def _conduct(self) -> None:
        """Make passes over the index until nobody waits."""
        while True:
            with self._lock:
                together = self._take()
                self._passing = bool(together)
            if not together:
                return
            end: BaseException | None = None
            try:
                self._pass(together)
            except BaseException as error:  # whatever it was, those who wait are told
                end = error
            for asked in together:
                asked.put(end)

    def _take(self) -> list["_Asked"]:
        """One question of each searcher in turn, until a pass is full or nobody waits."""
        together: list[_Asked] = []
        while self._waiting and len(together) < self._together:
            searcher, queue = self._waiting.popitem(last=False)
            together.append(queue.popleft())
            if queue:
                self._waiting[searcher] = queue
        return together

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

    def __init__(
        self, number: int, question: Question, active: Callable[[], bool], answers: Answers
    ) -> None:
        self.question = question
        self.left = False
        self._number, self._active, self._answers = number, active, answers

    def put(self, answer: EncryptedScores | BaseException | None) -> None:
        """Hand over what the one who asked waits for."""
        self._answers.put((self._number, answer))

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
        asked.put(answer)
