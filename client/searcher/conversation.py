"""A search as a conversation: ask, mark what was good and bad, ask again, take a step back.

What is looked for moves on this machine alone (Rocchio 1971, as in Manning, Raghavan and Schuetze,
Introduction to Information Retrieval, section 9.1.1), towards the embeddings of what was marked as
good and away from the bad. To an institution each step is one more question like any other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from client.searcher.query import Query, Vector, unit
from client.searcher.results import Result, Results
from client.searcher.searcher import Searcher
from protocol.errors import UsageError

STAY, TOWARDS, AWAY = 1.0, 0.75, 0.25
"""Rocchio's weights: of the query itself, of what is good, and of what is bad."""


@dataclass(frozen=True)
class Step:
    """One question of a conversation and its answer."""

    query: Query
    vector: Vector
    results: Results
    good: tuple[Result, ...] = ()
    bad: tuple[Result, ...] = ()


class Conversation:
    """The steps so far, of which the last can be undone one by one."""

    def __init__(self, searcher: Searcher, k: int = 10, **also: Any) -> None:
        """Ask for ``k`` pictures at each step; ``also`` goes to ``Searcher.find`` as it is."""
        self.searcher, self.k, self._also = searcher, k, also
        self.steps: list[Step] = []

    @property
    def results(self) -> Results:
        """What was found last. Raises UsageError before the first question."""
        return self._last.results

    def search(self, query: Query | str) -> Results:
        """Look for something, from the beginning."""
        asked = Query(query) if isinstance(query, str) else query
        return self._ask(asked, self.searcher.embed(asked))

    def refine(self, good: Sequence[Result] = (), bad: Sequence[Result] = ()) -> Results:
        """Look on, towards the ``good`` results and away from the ``bad`` ones.

        Raises UsageError for a result of which nothing was released: there is nothing to look at.
        """
        if not good and not bad:
            raise UsageError("no result was marked", "Mark some as good, or as bad.")
        last = self._last
        vector = rocchio(last.vector, self._embedded(good), self._embedded(bad))
        return self._ask(last.query, vector, good, bad)

    def more_like(self, result: Result) -> Results:
        """Look for what is like one result, and for nothing else."""
        query = Query(f"like {result.institution} #{result.position}")
        return self._ask(query, self.searcher.embed_result(result), (result,))

    def undo(self) -> Results:
        """Go back a step; nothing is asked again. Raises UsageError at the first."""
        if len(self.steps) < 2:
            raise UsageError("there is no step to go back to", "Search for something first.")
        self.steps.pop()
        return self.results

    @property
    def _last(self) -> Step:
        if not self.steps:
            raise UsageError("nothing was searched for yet", "Search for something first.")
        return self.steps[-1]

    def _embedded(self, results: Sequence[Result]) -> list[Vector]:
        return [self.searcher.embed_result(one) for one in results]

    def _ask(
        self,
        query: Query,
        vector: Vector,
        good: Sequence[Result] = (),
        bad: Sequence[Result] = (),
    ) -> Results:
        found = self.searcher.find(query, vector, self.k, **self._also)
        self.steps.append(Step(query, vector, found, tuple(good), tuple(bad)))
        return found


def rocchio(question: Vector, good: Sequence[Vector], bad: Sequence[Vector]) -> Vector:
    """Move a unit vector float32 [dim] towards the mean of ``good`` and away from that of ``bad``.

    Returns float32 [dim] of length one.
    """
    moved = STAY * question.astype(np.float64)
    if good:
        moved = moved + TOWARDS * np.mean(good, axis=0)
    if bad:
        moved = moved - AWAY * np.mean(bad, axis=0)
    return unit(moved)
