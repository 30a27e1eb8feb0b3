"""Lines that a person types, with a history of this user's own, or that come through a pipe."""

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import History


def lines(commands: Sequence[str], institutions: Sequence[str], remember: bool) -> Iterator[str]:
    """Yield a line at a time until the input ends.

    At a terminal there is a prompt, which completes ``commands`` and what they take and keeps a
    history if it shall ``remember``.
    """
    if not sys.stdin.isatty():
        # Read as bytes: what is no UTF-8 is a bad sentence, and not the end.
        yield from (line.decode(errors="replace") for line in sys.stdin.buffer)
        return
    session = _session(commands, institutions, remember)
    while True:
        try:
            yield session.prompt("search> ")
        except KeyboardInterrupt:  # empties the line
            continue
        except EOFError:
            return


def history_file() -> Path:
    """Where sentences are kept: ``$XDG_STATE_HOME/blindsight``, or ``~/.local/state/blindsight``.

    Made if it is missing, for this user alone to read. Raises OSError.
    """
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    folder = Path(base) / "blindsight"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(folder / "history", os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o600)
    os.fchmod(file, 0o600)
    os.close(file)
    return folder / "history"


def _session(
    commands: Sequence[str], institutions: Sequence[str], remember: bool
) -> "PromptSession[str]":
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import (
        Completer,
        NestedCompleter,
        PathCompleter,
        WordCompleter,
    )

    taken: dict[str, Completer | None] = dict.fromkeys(commands)
    taken |= dict.fromkeys(("image", "save"), PathCompleter(expanduser=True))
    taken["from"] = WordCompleter(["all", *institutions])
    return PromptSession(
        history=_history(remember),
        completer=NestedCompleter.from_nested_dict(taken),
        complete_while_typing=False,
    )


def _history(remember: bool) -> "History":
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        return FileHistory(history_file()) if remember else InMemoryHistory()
    except OSError:  # a home that cannot be written
        return InMemoryHistory()
