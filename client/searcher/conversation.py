"""A search as a conversation: ask, mark what was good and bad, ask again, take a step back.

What is looked for moves on this machine alone (Rocchio 1971, as in Manning, Raghavan and Schuetze,
Introduction to Information Retrieval, section 9.1.1), towards the embeddings of what was marked as
good and away from the bad. To an institution each step is one more question like any other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from client.searcher.query import WITHOUT_WEIGHT, Query, Vector, unit
from client.searcher.results import Result, Results
from client.searcher.searcher import Searcher
from protocol.errors import BlindsightError, MalformedMessage, ServiceError, UsageError

if TYPE_CHECKING:
    from client.searcher.assistant import Assistant

STAY, TOWARDS, AWAY = 1.0, 0.75, 0.25
"""Rocchio's weights: of the query itself, of what is good, and of what is bad."""


@dataclass(eq=False)
class Step:
    """One question of a conversation, and what is known of its answer so far."""

    query: Query
    vector: Vector
    results: Results = field(repr=False)
    good: tuple[Result, ...] = ()
    bad: tuple[Result, ...] = ()


class Conversation:
    """The steps so far, of which the last can be undone one by one.

    ``search``, ``refine`` and ``more_like`` wait for the whole answer. What they ask can also be
    watched while it is answered: ``for results in conversation.watch(conversation.begin(query))``,
    and the same with ``refined`` and ``like``.
    """

    def __init__(
        self, searcher: Searcher, k: int = 10, most_steps: int | None = None, **also: Any
    ) -> None:
        """Ask for ``k`` pictures at each step; ``also`` goes to ``Searcher.watch`` as it is.

        Of more than ``most_steps`` the first are forgotten.
        """
        self.searcher, self.k, self.also, self._most = searcher, k, also, most_steps
        self.steps: list[Step] = []
        self.assistant: Assistant | None = None
        """What words a follow-up, if the user has one."""

    @property
    def results(self) -> Results:
        """What was found last. Raises UsageError before the first question."""
        return self._last.results

    def search(self, query: Query | str) -> Results:
        """Look for something, from the beginning."""
        return self._whole(self.begin(query))

    def refine(self, good: Sequence[Result] = (), bad: Sequence[Result] = ()) -> Results:
        """Look on, towards the ``good`` results and away from the ``bad`` ones.

        Raises UsageError for a result of which nothing was released: there is nothing to look at.
        """
        return self._whole(self.refined(good, bad))

    def more_like(self, result: Result) -> Results:
        """Look for what is like one result, and for nothing else."""
        return self._whole(self.like(result))

    def without(self, words: str) -> Results:
        """Look on for the same, away from what ``words`` say."""
        last = self._last
        query = replace(last.query, without=(*last.query.without, words))
        away = WITHOUT_WEIGHT * self.searcher.embed(Query(words))
        return self._whole(self._step(query, unit(last.vector - away)))

    def follow_up(self, text: str) -> Results:
        """Search for what ``text`` means after what was asked before, as the assistant words it.

        If the assistant fails, ``text`` is searched for as it stands, and a note says so. Raises
        UsageError without an assistant, or if the user does not agree to what it would be told.
        """
        assistant = self._assistant
        try:
            query = assistant.rewrite([one.query for one in self.steps], text)
        except (ServiceError, MalformedMessage) as error:
            notes: dict[str, BlindsightError] = {"assistant": error}
            found = self.search(text)
            self._last.results = replace(found, notes=found.notes | notes)
            return self.results
        return self.search(query)

    def rerank(self) -> Results:
        """Order the last results by what the assistant sees in their thumbnails.

        No institution is asked. Raises what ``Assistant.rerank`` does; UsageError without one.
        """
        last = self._last
        last.results = self._assistant.rerank(str(last.query), last.results)
        return last.results

    def begin(self, query: Query | str) -> Step:
        """The step that ``search`` asks. Nothing is sent."""
        asked = Query(query) if isinstance(query, str) else query
        return self._step(asked, self.searcher.embed(asked))

    def refined(self, good: Sequence[Result] = (), bad: Sequence[Result] = ()) -> Step:
        """The step that ``refine`` asks. Nothing is sent."""
        if not good and not bad:
            raise UsageError("no result was marked", "Mark some as good, or as bad.")
        last = self._last
        vector = rocchio(last.vector, self._embedded(good), self._embedded(bad))
        return self._step(last.query, vector, good, bad)

    def like(self, result: Result) -> Step:
        """The step that ``more_like`` asks. Nothing is sent."""
        query = Query(f"like {result.institution} #{result.position}")
        return self._step(query, self.searcher.embed_result(result), (result,))

    def watch(self, step: Step, patience: float | None = 1.0) -> Iterator[Results]:
        """Ask a step, which is the last from now on; yield what is known, whenever more is.

        Whoever stops listening keeps what was found until then. A step that nobody answered is
        taken back. ``patience`` and errors are those of ``Searcher.watch``.
        """
        found = self.searcher.watch(step.query, step.vector, self.k, patience=patience, **self.also)
        self.steps.append(step)
        if self._most is not None:
            del self.steps[: -self._most]
        return self._followed(step, found)

    def undo(self) -> Results:
        """Go back a step; nothing is asked again. Raises UsageError at the first."""
        if len(self.steps) < 2:
            raise UsageError("there is no step to go back to", "Search for something first.")
        self.steps.pop()
        return self.results

    @property
    def _assistant(self) -> "Assistant":
        if self.assistant is None:
            raise UsageError("there is no assistant", "Name one: --assistant, --assistant-model.")
        return self.assistant

    @property
    def _last(self) -> Step:
        if not self.steps:
            raise UsageError("nothing was searched for yet", "Search for something first.")
        return self.steps[-1]

    def _embedded(self, results: Sequence[Result]) -> list[Vector]:
        return [self.searcher.embed_result(one) for one in results]

    def _step(
        self,
        query: Query,
        vector: Vector,
        good: Sequence[Result] = (),
        bad: Sequence[Result] = (),
    ) -> Step:
        nothing = Results(query, (), {}, {}, {}, pending=frozenset(self.searcher.institutions))
        return Step(query, vector, nothing, tuple(good), tuple(bad))

    def _followed(self, step: Step, found: Iterator[Results]) -> Iterator[Results]:
        try:
            for step.results in found:
                yield step.results
        except (BlindsightError, KeyboardInterrupt):
            # It may be gone: undone, or pushed out by later ones.
            self.steps = [one for one in self.steps if one is not step]
            raise

    def _whole(self, step: Step) -> Results:
        for _ in self.watch(step, patience=None):
            pass
        return step.results


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
