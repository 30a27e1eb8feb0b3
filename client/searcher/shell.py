"""A conversation at a prompt: sentences search, and commands refine what was found.

A line that begins with a command's word is that command, so that a slip of the hand is an error
and never a question that somebody is asked; ``search`` comes before a sentence that begins so.
"""

import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from client.searcher.conversation import Conversation
from client.searcher.lines import account, listing, picture_columns, printable, privacy
from client.searcher.query import Query
from client.searcher.results import Result, Results
from client.searcher.searcher import MAX_RESULTS, Searcher
from protocol.errors import BlindsightError, UsageError

if TYPE_CHECKING:
    from client.searcher.assistant import Assistant

COMMANDS = {
    "search": (
        "search SENTENCE",
        "look for it; a sentence that begins with no command needs no search",
    ),
    "image": ("image PATH", "look for what is like a picture of yours"),
    "not": ("not WORDS", "look on, away from them"),
    "more": ("more N", "look for what is like result N"),
    "less": ("less N", "look on, away from result N"),
    "good": ("good N...", "mark results as good"),
    "bad": ("bad N...", "mark results as bad"),
    "again": ("again", "look on, towards what was marked as good and away from what was bad"),
    "ask": ("ask FOLLOW-UP", "let the assistant word it, after what was asked before"),
    "rerank": ("rerank", "let the assistant order the pictures; no institution is asked"),
    "undo": ("undo", "go back a step; nobody is asked"),
    "from": ("from A,B", "ask these institutions alone from now on; from all: ask all"),
    "k": ("k N", "so many results from now on"),
    "save": ("save PATH", "write a page (PATH ends in .html), or the pictures to a folder"),
    "open": ("open [N]", "show the results, or one of them, in the browser"),
    "privacy": ("privacy", "what each party saw of the last search"),
    "help": ("help", "this"),
    "quit": ("quit", "leave"),
}
"""What can be said, how, and what it does."""


class Shell:
    """One line in, text out."""

    def __init__(
        self,
        searcher: Searcher,
        k: int = 10,
        pictures: bool | None = None,
        assistant: "Assistant | None" = None,
    ) -> None:
        """Ask for ``k`` pictures. ``pictures`` is as ``lines.picture_columns`` takes it."""
        self._searcher, self._pictures = searcher, pictures
        self._conversation = Conversation(searcher, k)
        self._conversation.assistant = assistant
        self._good: list[Result] = []
        self._bad: list[Result] = []
        self.done = False
        """After ``quit``."""

    def run(self, lines: Iterable[str]) -> None:
        """Do line by line, results on standard output; errors are words on standard error."""
        for line in lines:
            try:
                text = self.do(line)
            except (BlindsightError, KeyboardInterrupt) as error:
                print(_words(error), file=sys.stderr, flush=True)
            else:
                print(text, end="\n" * bool(text), flush=True)
            if self.done:
                break

    def do(self, line: str) -> str:
        """Do what a line says and return what there is to show. Raises BlindsightError."""
        word, _, rest = line.strip().partition(" ")
        if word not in COMMANDS:
            return self._do_search(line) if word else ""
        verb: Callable[[str], str] = getattr(self, f"_do_{word}")
        return verb(rest.strip())

    def _do_search(self, sentence: str) -> str:
        return self._show(self._conversation.search(sentence.strip()))

    def _do_image(self, path: str) -> str:
        return self._show(self._conversation.search(Query(image=_path("image", path))))

    def _do_not(self, words: str) -> str:
        return self._show(self._conversation.without(words))

    def _do_more(self, number: str) -> str:
        return self._show(self._conversation.more_like(self._one("more", number)))

    def _do_less(self, number: str) -> str:
        return self._show(self._conversation.refine(bad=[self._one("less", number)]))

    def _do_good(self, numbers: str) -> str:
        return self._mark(self._good, self._bad, self._chosen("good", numbers))

    def _do_bad(self, numbers: str) -> str:
        return self._mark(self._bad, self._good, self._chosen("bad", numbers))

    def _do_again(self, rest: str) -> str:
        _nothing("again", rest)
        return self._show(self._conversation.refine(self._good, self._bad))

    def _do_ask(self, words: str) -> str:
        return self._show(self._conversation.follow_up(words))

    def _do_rerank(self, rest: str) -> str:
        _nothing("rerank", rest)
        return self._show(self._conversation.rerank())

    def _do_undo(self, rest: str) -> str:
        _nothing("undo", rest)
        return self._show(self._conversation.undo())

    def _do_from(self, names: str) -> str:
        there = self._searcher.institutions
        asked = there if names == "all" else tuple(names.replace(",", " ").split())
        if not asked or not set(asked) <= set(there):
            raise UsageError(f"from takes names of {', '.join(there)}, got {names!r}")
        self._conversation.also["institutions"] = () if names == "all" else asked
        return f"from now on: {', '.join(asked)}"

    def _do_k(self, number: str) -> str:
        (self._conversation.k,) = _numbers("k", number, MAX_RESULTS, only_one=True)
        return f"from now on: {self._conversation.k} results"

    def _do_save(self, path: str) -> str:
        where = _path("save", path)
        self._conversation.results.save(where)
        return f"written: {where}"

    def _do_open(self, number: str) -> str:
        results = self._conversation.results
        if number:
            results = replace(results, ranked=(self._one("open", number),))
        results.show()
        return ""

    def _do_privacy(self, rest: str) -> str:
        _nothing("privacy", rest)
        return privacy(self._conversation.results)

    def _do_help(self, rest: str) -> str:
        return "\n".join(f"{usage:<16} {what}" for usage, what in COMMANDS.values())

    def _do_quit(self, rest: str) -> str:
        self.done = True
        return ""

    def _show(self, results: Results) -> str:
        self._good, self._bad = [], []
        width = picture_columns(self._pictures)
        notes = [f"{name}: {printable(note.message)}" for name, note in results.notes.items()]
        heading = printable(str(results.query))
        return "\n".join([heading, listing(results, width), *notes, account(results)])

    def _mark(self, mine: list[Result], others: list[Result], chosen: list[Result]) -> str:
        mine += [one for one in chosen if one not in mine]
        others[:] = [one for one in others if one not in chosen]
        return f"{len(self._good)} good, {len(self._bad)} bad; again looks on with them"

    def _one(self, word: str, number: str) -> Result:
        (chosen,) = self._chosen(word, number, only_one=True)
        return chosen

    def _chosen(self, word: str, numbers: str, only_one: bool = False) -> list[Result]:
        results = self._conversation.results
        return [results[one - 1] for one in _numbers(word, numbers, len(results), only_one)]


def _numbers(word: str, text: str, most: int, only_one: bool = False) -> list[int]:
    said = text.replace(",", " ").split()
    found = [int(one) for one in said if one.isascii() and one.isdecimal() and len(one) < 5]
    if not found or len(found) < len(said) or (only_one and len(found) > 1):
        wanted = "a number" if only_one else "numbers"
        raise UsageError(f"{word} takes {wanted}, got {text!r}", _sentence_hint(word, text))
    if not all(1 <= one <= most for one in found):
        raise UsageError(f"{word} takes 1 to {most}, got {text}")
    return found


def _nothing(word: str, rest: str) -> None:
    if rest:
        raise UsageError(f"{word} stands alone, got {rest!r}", _sentence_hint(word, rest))


def _sentence_hint(word: str, rest: str) -> str:
    return f"To look for these words: search {word} {rest}" if rest else ""


def _path(word: str, text: str) -> Path:
    if not text:
        raise UsageError(f"{word} takes a path")
    return Path(text.strip("'\"")).expanduser()


def _words(error: BaseException) -> str:
    if not isinstance(error, BlindsightError):
        return "interrupted"
    return printable(f"{error.message}. {error.hint}".rstrip() if error.hint else error.message)
