"""One person's search: the steps so far, and what the page is told of each as answers come in."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from client.searcher.conversation import Conversation, Step
from client.searcher.query import Query
from client.searcher.results import Result, Results
from client.searcher.searcher import Searcher
from client.searcher.ui.pictures import Pictures
from client.searcher.ui.seen import seen_by_coordinator, seen_by_institution
from protocol.errors import BlindsightError, UsageError

COUNTS = (12, 24, 48)
"""How many pictures one may ask for."""

_MOST_STEPS = 20
_MOST_OWN = 4

View = dict[str, Any]
"""What the page shows of a step, in plain JSON values."""


class _Form(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Asked(_Form):
    """A search, as the page sends it."""

    text: str = ""
    without: Annotated[list[str], Field(max_length=8)] = []
    picture: str | None = None
    """The name of one that was taken before."""
    k: Annotated[int, Field(ge=1, le=max(COUNTS))] = COUNTS[0]


Key = tuple[str, int]
"""Institution and position."""


class Marks(_Form):
    """Results that were marked."""

    good: Annotated[list[Key], Field(max_length=max(COUNTS))] = []
    bad: Annotated[list[Key], Field(max_length=max(COUNTS))] = []


class Session:
    """What is kept of it is bounded: 20 steps, and four pictures of the person's own."""

    def __init__(self, searcher: Searcher, listed: bool) -> None:
        """``listed`` says that the coordinator was asked whom one can search."""
        self.pictures = Pictures()
        self._talk = Conversation(searcher, most_steps=_MOST_STEPS)
        self._listed = listed
        self._own: OrderedDict[str, bytes] = OrderedDict()

    @property
    def institutions(self) -> tuple[str, ...]:
        """Whom it can ask."""
        return self._talk.searcher.institutions

    @property
    def started(self) -> bool:
        """Whether something was searched for."""
        return bool(self._talk.steps)

    def take(self, data: bytes) -> str:
        """Keep a picture to search with; return its name. Raises DataError for what is none."""
        self._talk.searcher.embed(Query(image=data))
        name = sha256(data).hexdigest()
        self._own[name] = data
        while len(self._own) > _MOST_OWN:
            self._own.popitem(last=False)
        return name

    def search(self, asked: Asked) -> Iterator[View]:
        """Look for something. Raises UsageError before anything is sent."""
        image = None
        if asked.picture is not None and (image := self._own.get(asked.picture)) is None:
            raise UsageError("your picture is not here any more", "Add it again.")
        self._talk.k = asked.k
        return self._watch(self._talk.begin(Query(asked.text.strip(), image, tuple(asked.without))))

    def refine(self, marks: Marks) -> Iterator[View]:
        """Look on, towards what is good and away from what is bad."""
        good, bad = ([self._found(key) for key in keys] for keys in (marks.good, marks.bad))
        return self._watch(self._talk.refined(good, bad))

    def like(self, key: Key) -> Iterator[View]:
        """Look for what is like one result."""
        return self._watch(self._talk.like(self._found(key)))

    def back(self, steps: int) -> View:
        """Go back a step, or with 0 say what is there; nobody is asked."""
        results = self._talk.undo() if steps else self._talk.results
        return self._view(results, done=True)

    def _watch(self, step: Step) -> Iterator[View]:
        for earlier in self._talk.steps:  # originals are large: those of one step are enough
            lean = tuple(replace(one, original=b"") for one in earlier.results)
            earlier.results = replace(earlier.results, ranked=lean)
        found = self._talk.watch(step)

        def views() -> Iterator[View]:
            yield self._view(step.results, done=False)
            try:
                for results in found:
                    yield self._view(results, done=not results.pending)
            except BlindsightError as error:
                yield failure(error)

        return views()

    def _found(self, key: Key) -> Result:
        for one in self._talk.results:
            if one.key == key:
                return one
        raise UsageError(f"{key[0]} #{key[1]} is not among the results", "Search again.")

    def _view(self, results: Results, done: bool) -> View:
        searcher = self._talk.searcher
        asked = [*searcher.institutions, *sorted(set(results.notes) - set(searcher.institutions))]
        return {
            "done": done,
            "k": self._talk.k,
            "trail": [_words(one) for one in self._talk.steps],
            "results": [self._result(one, results, done) for one in results],
            "institutions": [_institution(results, name, done) for name in asked],
            "coordinator": seen_by_coordinator(searcher.relayed, self._listed),
            "milliseconds": round(results.milliseconds.get("total", 0.0)),
        }

    def _result(self, one: Result, results: Results, done: bool) -> dict[str, Any]:
        small = self.pictures.keep(one.thumbnail)
        nothing_yet = not (one.thumbnail or one.caption or one.id)
        return {
            "key": one.key,
            "score": one.score,
            "caption": one.caption,
            "id": one.id,
            "small": small,
            "large": self.pictures.keep(one.original) or small,
            "waiting": nothing_yet and not done and one.institution in results.pending,
            "teaches": bool(one.thumbnail or one.caption),
        }


def failure(error: BlindsightError) -> View:
    """What went wrong, as the page is told."""
    return {"error": {"message": error.message, "hint": error.hint}}


def _institution(results: Results, name: str, done: bool) -> dict[str, Any]:
    note = results.notes.get(name)
    if note:
        state = "note"
    elif name in results.pending:
        state = "stopped" if done else "sending" if name in results.answered else "asking"
    else:
        state = "answered"
    return {
        "name": name,
        "state": state,
        "note": note and {"message": note.message, "hint": note.hint},
        "seen": seen_by_institution(results, name),
    }


def _words(step: Step) -> str:
    if str(step.query).startswith("like ") and step.good and not step.bad:
        return str(step.query)
    marks = [f"{len(some)} {word}" for some, word in ((step.good, "good"), (step.bad, "bad"))]
    marked = [one for one in marks if not one.startswith("0")]
    return f"{step.query}: {', '.join(marked)}" if marked else str(step.query)
