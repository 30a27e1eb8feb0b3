"""The searcher: a sentence in, every partner's pictures out, and nobody shown anything.

    with Searcher(model, institutions) as searcher:
        for result in searcher.search("a small red circle above a blue star", k=10):
            print(result.institution, result.score)

The sentence and its embedding never leave this process. Each institution receives ciphertext
under a key of its own that is made for this search and dropped after it, and then a request for
items in which the winners hide among decoys.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from client.searcher.ckks import SealScheme
from client.searcher.remote import Released, RemoteInstitution, Traffic
from protocol.errors import BlindsightError, ServiceError, UsageError
from protocol.scheme import Scheme
from protocol.wire import MAX_POSITIONS, IndexDescription

T = TypeVar("T")

MAX_CHARACTERS = 2000
MAX_RESULTS = MAX_POSITIONS // 2
"""So that at least as many decoys as winners fit into one fetch."""


class TextEncoder(Protocol):
    """What a searcher needs of a model: ``protocol.model.embedder.Embedder`` is one."""

    @property
    def release_id(self) -> str:
        """The release that embeds."""

    def texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embed sentences as unit vectors float32 [n, dim]."""


@dataclass(frozen=True)
class Result:
    """One picture found."""

    institution: str
    position: int
    score: float
    thumbnail: bytes
    """JPEG, or empty where the institution releases none."""
    caption: str
    """Or empty where the institution releases none."""


@dataclass(frozen=True)
class Results(Sequence[Result]):
    """Results, best first; notes on institutions that did not answer; what it all cost."""

    ranked: tuple[Result, ...]
    notes: dict[str, BlindsightError]
    traffic: dict[str, Traffic]
    milliseconds: dict[str, float]

    def __len__(self) -> int:
        return len(self.ranked)

    def __getitem__(self, place: int) -> Result:  # type: ignore[override]
        return self.ranked[place]

    def __iter__(self) -> Iterator[Result]:
        return iter(self.ranked)


@dataclass(frozen=True)
class Answers:
    """Every score float64 [items] of every institution that answered, by name."""

    described: dict[str, IndexDescription]
    scores: dict[str, NDArray[np.float64]]
    notes: dict[str, BlindsightError]
    traffic: dict[str, Traffic]

    def best(self, k: int) -> list[tuple[str, int, float]]:
        """Return the k best (institution, position, score): one model, so scores compare."""
        candidates = [
            (name, int(position), float(values[position]))
            for name, values in self.scores.items()
            for position in np.argsort(-values, kind="stable")[:k]
        ]
        return sorted(candidates, key=lambda one: -one[2])[:k]


class Searcher:
    """Asks all institutions at once; one that fails costs a note, never the search."""

    def __init__(
        self,
        encoder: TextEncoder,
        institutions: Sequence[RemoteInstitution],
        scheme: Scheme | None = None,
    ) -> None:
        if not institutions:
            raise UsageError("there is no institution to search", "Name at least one.")
        self._encoder = encoder
        self._institutions = institutions
        self._scheme = scheme or SealScheme()
        self._pool = ThreadPoolExecutor(len(institutions), "ask")

    def search(self, text: str, k: int = 10) -> Results:
        """Return the ``k`` best pictures of all institutions for a sentence.

        To each institution this reveals that a search happened, and then 2k positions of which
        at most k were wanted. Raises :class:`ServiceError` if no institution answered.
        """
        if not text.strip() or len(text) > MAX_CHARACTERS:
            raise UsageError(
                f"a sentence has 1 to {MAX_CHARACTERS} characters, got {len(text.strip())}"
            )
        if not 1 <= k <= MAX_RESULTS:
            raise UsageError(f"1 to {MAX_RESULTS} results can be asked for, got {k}")
        start = time.perf_counter()
        question = self._encoder.texts([text])[0]
        embedded = time.perf_counter()
        answers = self.ask(question)
        best = answers.best(k)
        released = self._fetch(answers, best, 2 * k)
        nothing = Released(b"", "")
        ranked = (
            Result(name, position, score, got.thumbnail, got.caption)
            for name, position, score in best
            for got in [released.get((name, position), nothing)]
        )
        total = {"embed": 1e3 * (embedded - start), "total": 1e3 * (time.perf_counter() - start)}
        return Results(tuple(ranked), answers.notes, answers.traffic, total)

    def ask(self, question: NDArray[np.float32]) -> Answers:
        """Ask every institution to score an embedding float32 [dim], all at once."""
        traffic = {one.name: Traffic() for one in self._institutions}

        def ask(one: RemoteInstitution) -> tuple[IndexDescription, NDArray[np.float64]]:
            described = one.describe(self._encoder.release_id)
            return described, one.score(described, question, self._scheme, traffic[one.name])

        answered, notes = self._all(ask)
        if not answered:
            name, error = next(iter(notes.items()))
            raise ServiceError(
                f"none of {len(notes)} institutions answered; {name}: {error.message}", error.hint
            )
        return Answers(
            {name: described for name, (described, _) in answered.items()},
            {name: scores for name, (_, scores) in answered.items()},
            notes,
            traffic,
        )

    def close(self) -> None:
        """Close all connections."""
        self._pool.shutdown(cancel_futures=True)
        for institution in self._institutions:
            institution.close()

    def __enter__(self) -> "Searcher":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fetch(
        self, answers: Answers, best: list[tuple[str, int, float]], count: int
    ) -> dict[tuple[str, int], Released]:
        def fetch(one: RemoteInstitution) -> dict[int, Released]:
            described = answers.described.get(one.name)
            if described is None:
                return {}
            winners = [position for name, position, _ in best if name == one.name]
            return one.fetch(described, winners, count, answers.traffic[one.name])

        fetched, failed = self._all(fetch)
        answers.notes.update(failed)
        return {
            (name, position): released
            for name, items in fetched.items()
            for position, released in items.items()
        }

    def _all(
        self, call: Callable[[RemoteInstitution], T]
    ) -> tuple[dict[str, T], dict[str, BlindsightError]]:
        answers: dict[str, T] = {}
        notes: dict[str, BlindsightError] = {}
        futures = {one.name: self._pool.submit(call, one) for one in self._institutions}
        for name, future in futures.items():
            try:
                answers[name] = future.result()
            except BlindsightError as error:
                notes[name] = error
        return answers, notes
