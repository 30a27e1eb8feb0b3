"""The searcher: a query becomes an embedding here, is encrypted here, and its answer read here.

    from client.searcher import Searcher

    with Searcher.from_profile() as s:
        results = s.search("a red car in snow", k=20)

The query, its embedding and every score never leave this process. Each institution receives
ciphertext under a key of its own that is made for this search and dropped after it, and then a
request for items in which the winners hide among decoys.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from numpy.typing import NDArray

from client.searcher.answers import Answers
from client.searcher.ckks import SealScheme
from client.searcher.fan_out import FanOut, describe
from client.searcher.prepared import PreparedKeys
from client.searcher.query import Encoder, Query, Vector, embed_picture
from client.searcher.remote import Released, RemoteInstitution
from client.searcher.results import Result, Results
from protocol.errors import BlindsightError, ServiceError, UsageError
from protocol.scheme import Scheme
from protocol.wire import MAX_POSITIONS, MAX_PROBES

if TYPE_CHECKING:
    from protocol.model.runtime.tower import Precision

MAX_RESULTS = MAX_POSITIONS // 2
"""So that at least as many decoys as winners fit into one fetch."""

_NOTHING = Released(b"", "")


class Searcher:
    """Asks all institutions at once; one that fails costs a note, never the search.

    What each sees of a search: that it happened, and when; ciphertext of a length that says
    nothing; and then ``k`` plus as many decoys of its items, of which at most ``k`` were wanted.
    """

    def __init__(
        self,
        encoder: Encoder,
        institutions: Sequence[RemoteInstitution],
        scheme: Scheme | None = None,
        notes: Mapping[str, BlindsightError] | None = None,
    ) -> None:
        """``notes`` say why others cannot be asked; they stand beside every result."""
        if not institutions:
            reasons = "; ".join(f"{name}: {note.message}" for name, note in (notes or {}).items())
            raise UsageError(
                f"there is no institution to search{': ' * bool(reasons)}{reasons}",
                "Name at least one.",
            )
        self._encoder = encoder
        self._institutions = {one.name: one for one in institutions}
        self._keys, self._warm = PreparedKeys(scheme or SealScheme()), False
        self._notes = dict(notes or {})

    @classmethod
    def from_profile(
        cls,
        root: Path | None = None,
        institutions: Sequence[str] = (),
        precision: "Precision" = "float32",
    ) -> Self:
        """The searcher that ``blindsight searcher setup`` prepared in ``root``.

        Asks the directory who can be asked, which tells the coordinator that a searcher is about
        to search. ``institutions`` limits it to these. ``precision`` "int8" makes pretrained towers
        smaller and faster. Raises UsageError where nothing is set up.
        """
        from client.searcher.profile import Profile
        from protocol.model.embedder import Embedder

        profile = Profile.open(root)
        release = profile.release()
        connections, notes = profile.connections(institutions)
        return cls(Embedder(release, precision), connections, notes=notes)

    @property
    def institutions(self) -> tuple[str, ...]:
        """Whom it can ask."""
        return tuple(self._institutions)

    @property
    def relayed(self) -> frozenset[str]:
        """Those of them to which the coordinator's relay leads."""
        return frozenset(name for name, one in self._institutions.items() if one.relayed)

    @property
    def release_id(self) -> str:
        """The model release that it embeds with."""
        return self._encoder.release_id

    def warm(self) -> None:
        """Do ahead what a search takes that depends on no query: now, and after each search.

        Institutions are asked to describe themselves, which tells each that a searcher is there;
        the model embeds a sentence; keys for the next questions are made in the background.
        """
        self._warm = True
        self._encoder.texts(["ready"])
        described, _ = describe(list(self._institutions.values()), self.release_id)
        self._keys.prepare([one.layout for one in described.values()])

    def search(
        self,
        text: str = "",
        k: int = 10,
        *,
        image: Path | bytes | None = None,
        without: Sequence[str] = (),
        institutions: Sequence[str] = (),
        decoys: int | None = None,
    ) -> Results:
        """Return the ``k`` best pictures of all institutions for a sentence, a picture, or both.

        ``without`` names what they shall not show. Each institution learns that a search happened
        and then ``k + decoys`` positions (``decoys`` is ``k`` unless said) of which at most ``k``
        were wanted, and which it cannot tell from decoys unless its own pictures give them away.
        Raises UsageError, DataError for a picture, ServiceError if no institution answered.
        """
        return self.find(Query(text, image, tuple(without)), None, k, institutions, decoys)

    def search_many(
        self,
        queries: Sequence[str | Query],
        k: int = 10,
        *,
        institutions: Sequence[str] = (),
        decoys: int | None = None,
    ) -> list[Results]:
        """Search for up to eight things in one pass over each index; results for each.

        An institution learns how many there are, and charges each as a question.
        """
        asked = [Query(one) if isinstance(one, str) else one for one in queries]
        if not 1 <= len(asked) <= MAX_PROBES:
            raise UsageError(f"1 to {MAX_PROBES} queries are asked at once, got {len(asked)}")
        *_, last = self._watch(asked, None, k, institutions, decoys, None)
        return last

    def find(
        self,
        query: Query,
        vector: Vector | None = None,
        k: int = 10,
        institutions: Sequence[str] = (),
        decoys: int | None = None,
    ) -> Results:
        """As ``search``, for a unit vector float32 [dim] if one is given: ``query`` is its name."""
        *_, last = self.watch(query, vector, k, institutions, decoys, patience=None)
        return last

    def watch(
        self,
        query: Query,
        vector: Vector | None = None,
        k: int = 10,
        institutions: Sequence[str] = (),
        decoys: int | None = None,
        patience: float | None = 1.0,
    ) -> Iterator[Results]:
        """As ``search``; yield what is known so far, whenever more is. The last is the whole.

        ``patience`` seconds after the first institution answered the pictures found so far are
        asked for. That is sooner than the last answer, and an early institution may then be asked
        for more of its own best items than if it had been compared with the late ones.
        """
        vectors = None if vector is None else vector[None]
        several = self._watch([query], vectors, k, institutions, decoys, patience)
        return (one for (one,) in several)

    async def asearch(self, text: str = "", k: int = 10, **also: object) -> Results:
        """``search`` for asyncio."""
        return await asyncio.to_thread(self.search, text, k, **also)  # type: ignore[arg-type]

    async def awatch(self, query: Query, **also: object) -> AsyncIterator[Results]:
        """``watch`` for asyncio."""
        found = await asyncio.to_thread(self.watch, query, **also)  # type: ignore[arg-type]
        while (known := await asyncio.to_thread(next, found, None)) is not None:
            yield known

    def ask(self, question: Vector) -> Answers:
        """Ask every institution to score an embedding float32 [dim]; no picture is fetched."""
        asked = self._fan_out(question[None], ())
        for _ in asked.run(0, 0, None):
            pass
        _check_answered(asked)
        return asked.answers[0]

    def embed(self, query: Query) -> Vector:
        """Embed on this machine, float32 [dim]; nothing is sent."""
        return query.embed(self._encoder)

    def embed_result(self, result: Result) -> Vector:
        """Embed what was released of a result: its thumbnail, or else its caption.

        Float32 [dim], made on this machine; nothing is sent. Raises UsageError where nothing was
        released, DataError for a thumbnail that is no picture.
        """
        name = f"{result.institution} #{result.position}"
        if result.thumbnail:
            return embed_picture(self._encoder, name, result.thumbnail)
        if result.caption:
            return self.embed(Query(result.caption))
        raise UsageError(
            f"{name}: neither a thumbnail nor a caption was released",
            "Refine with a result that can be seen.",
        )

    def close(self) -> None:
        """Close all connections, and drop all keys; a search that is under way ends."""
        self._keys.close()
        for institution in self._institutions.values():
            institution.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fan_out(self, questions: NDArray[np.float32], names: Sequence[str]) -> FanOut:
        missing = [name for name in names if name not in self._institutions]
        if missing:
            raise UsageError(
                f"{', '.join(missing)} cannot be asked",
                f"There are: {', '.join(self.institutions)}.",
            )
        chosen = [self._institutions[name] for name in names or self._institutions]
        notes = {} if names else self._notes
        return FanOut(chosen, self.release_id, questions, self._keys, notes)

    def _watch(
        self,
        queries: Sequence[Query],
        vectors: Vector | None,
        k: int,
        names: Sequence[str],
        decoys: int | None,
        patience: float | None,
    ) -> Iterator[list[Results]]:
        decoys = k * len(queries) if decoys is None else decoys
        if k < 1 or decoys < 0 or k * len(queries) + decoys > MAX_POSITIONS:
            raise UsageError(
                f"1 to {MAX_RESULTS} results can be asked for, with decoys and over all queries "
                f"{MAX_POSITIONS}; got {k} for each of {len(queries)} and {decoys} decoys"
            )
        start = time.perf_counter()
        if vectors is None:
            vectors = np.stack([one.embed(self._encoder) for one in queries])
        embedded = 1e3 * (time.perf_counter() - start)
        asked = self._fan_out(vectors, names)

        def known() -> Iterator[list[Results]]:
            for _ in asked.run(k, decoys, patience):
                if not asked.pending:
                    _check_answered(asked)
                total = 1e3 * (time.perf_counter() - start)
                yield _results(asked, queries, k, {"embed": embedded, "total": total})
            if self._warm:
                self._keys.prepare([one.layout for one in asked.described.values()])

        return known()


def _results(
    asked: FanOut, queries: Sequence[Query], k: int, milliseconds: dict[str, float]
) -> list[Results]:
    def result(name: str, position: int, score: float) -> Result:
        item = asked.released.get((name, position), _NOTHING)
        return Result(name, position, score, item.thumbnail, item.caption, item.id, item.original)

    return [
        Results(
            query,
            tuple(result(*one) for one in answers.best(k)),
            dict(asked.notes),
            asked.traffic,
            milliseconds,
            frozenset(asked.answered),
            frozenset(asked.pending),
        )
        for query, answers in zip(queries, asked.answers, strict=True)
    ]


def _check_answered(asked: FanOut) -> None:
    if not asked.answered:
        name, error = next(iter(asked.notes.items()))
        raise ServiceError(
            f"none of {len(asked.notes)} institutions answered; {name}: {error.message}", error.hint
        )
