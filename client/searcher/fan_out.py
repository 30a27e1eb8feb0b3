"""One search under way: several institutions at once, and what is known of their answers so far.

Pictures are asked for when all scores are there, or after ``patience``: then an institution is
asked for those of its items alone that are among the best of everybody, hidden among decoys, and
one with none of them sees nothing but decoys. Asking each for its own best at once would be
sooner, and would tell it which of its items are nearest to the question.
"""

import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from client.searcher.answers import Answers
from client.searcher.lines import printable
from client.searcher.remote import Released, RemoteInstitution
from client.searcher.traffic import Traffic
from protocol.errors import BlindsightError, EpochMismatch, MalformedMessage
from protocol.scheme import Scheme
from protocol.wire import IndexDescription

_HIGHEST = 1.25
"""A cosine is at most one; the rest is room for the noise of an institution's policy."""

_Scored = tuple[IndexDescription, NDArray[np.float64]]
"""What is served, and scores float64 [q, items]."""


class FanOut:
    """Asks q questions, embeddings float32 [q, dim], of several institutions."""

    def __init__(
        self,
        institutions: Sequence[RemoteInstitution],
        release_id: str,
        questions: NDArray[np.float32],
        scheme: Scheme,
        notes: dict[str, BlindsightError],
    ) -> None:
        """``notes`` on institutions that cannot be asked stand beside those that come."""
        self._institutions = {one.name: one for one in institutions}
        self._release_id = release_id
        self._questions, self._scheme = questions, scheme
        self.notes = dict(notes)
        self.traffic = {one.name: Traffic() for one in institutions}
        self.answered: set[str] = set()
        self.pending = {one.name for one in institutions}
        self.described: dict[str, IndexDescription] = {}
        self.answers = [Answers(self.described, {}, self.notes, self.traffic) for _ in questions]
        self.released: dict[tuple[str, int], Released] = {}

    def run(self, k: int, decoys: int, patience: float | None) -> Iterator[None]:
        """Ask for scores, then for the pictures of the ``k`` best; yield when more is known.

        Pictures are asked for ``patience`` seconds after the first answer, however many
        institutions are still to answer; with None not before all have. Each institution is asked
        for ``q * k + decoys`` items, whatever it has. With ``k`` 0 scores are all.
        """
        pool = ThreadPoolExecutor(2 * len(self._institutions), "ask")
        scoring = {pool.submit(self._score, one): one.name for one in self._institutions.values()}
        fetching: dict[Future[dict[int, Released]], str] = {}
        scored: list[str] = []
        until = math.inf
        try:
            while scoring or scored or fetching:
                if scored and (not scoring or time.monotonic() >= until):
                    winners, count = self._winners(k), len(self._questions) * k + decoys
                    for name in scored:
                        found = winners.get(name, [])
                        fetching[pool.submit(self._fetch, name, found, count)] = name
                    scored = []
                # A search without patience waits for all.
                limit = until - time.monotonic() if scored and until < math.inf else None
                running: list[Future[Any]] = [*scoring, *fetching]
                for future in wait(running, limit, FIRST_COMPLETED).done:
                    if future in scoring:
                        name = scoring.pop(future)
                        if self._took_scores(name, future) and k:
                            if patience is not None:
                                until = min(until, time.monotonic() + patience)
                            scored.append(name)
                            continue
                    else:
                        name = fetching.pop(future)
                        self._took_items(name, future)
                    self.pending.discard(name)
                yield
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _took_scores(self, name: str, future: Future[_Scored]) -> bool:
        with _noted(name, self.notes):
            self.described[name], scores = future.result()
            for answers, mine in zip(self.answers, scores, strict=True):
                answers.scores[name] = mine
            self.answered.add(name)
        return name in self.answered

    def _took_items(self, name: str, future: Future[dict[int, Released]]) -> None:
        with _noted(name, self.notes):
            self.released |= {(name, at): item for at, item in future.result().items()}

    def _winners(self, k: int) -> dict[str, list[int]]:
        """Positions that are among the k best of a question as things stand, by institution."""
        winners: dict[str, set[int]] = {}
        for answers in self.answers:
            for name, position, _ in answers.best(k):
                winners.setdefault(name, set()).add(position)
        return {name: sorted(found) for name, found in winners.items()}

    def _score(self, one: RemoteInstitution) -> _Scored:
        try:
            described, scores = self._ask(one)
        except EpochMismatch:  # a new epoch came between the description and the question
            described, scores = self._ask(one)
        highest = float(np.abs(scores).max(initial=0.0))
        if highest > _HIGHEST:
            raise MalformedMessage(
                f"{one.name}: a cosine is at most 1, got a score of {highest:.2f}"
            )
        return described, scores

    def _ask(self, one: RemoteInstitution) -> _Scored:
        described, traffic = one.describe(self._release_id), self.traffic[one.name]
        if len(self._questions) > 1:
            questions = list(self._questions)
            return described, one.screen(described, questions, self._scheme, traffic)
        return described, one.score(described, self._questions[0], self._scheme, traffic)[None]

    def _fetch(self, name: str, winners: list[int], count: int) -> dict[int, Released]:
        one, traffic = self._institutions[name], self.traffic[name]
        return one.fetch(self.described[name], winners, count, traffic)


def describe(
    institutions: Sequence[RemoteInstitution], release_id: str
) -> tuple[dict[str, IndexDescription], dict[str, BlindsightError]]:
    """Ask each what it serves, and no question: descriptions, and notes on the others, by name."""
    described: dict[str, IndexDescription] = {}
    notes: dict[str, BlindsightError] = {}
    with ThreadPoolExecutor(max(1, len(institutions)), "describe") as pool:
        asked = {one.name: pool.submit(one.describe, release_id) for one in institutions}
    for name, future in asked.items():
        with _noted(name, notes):
            described[name] = future.result()
    return described, notes


@contextmanager
def _noted(name: str, notes: dict[str, BlindsightError]) -> Iterator[None]:
    """Whatever goes wrong with one institution is a note on it."""
    try:
        yield
    except BlindsightError as error:
        # Its frames hold the key of the question, which must not outlive the search.
        error.__cause__ = error.__context__ = None
        error.message = printable(error.message)  # it may quote the other side
        error.args = (error.message,)
        notes[name] = error.with_traceback(None)
