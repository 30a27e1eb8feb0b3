"""How every command speaks: results on stdout, talk on stderr, one envelope under ``--json``.

1. stdout carries the result and nothing else; with ``--json`` it is exactly one envelope.
2. stderr carries talk: progress, notes, errors. Progress is silent when it is not a terminal.
3. An error is one message and one hint, never a traceback; exit codes are those of
   ``protocol.errors``, 130 after Ctrl-C.
4. Nothing secret is printed: no key, no embedding.
"""

import errno
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any, ParamSpec

import typer

from protocol.errors import BlindsightError, StorageError
from protocol.files import storage_error

SCHEMA_VERSION = 1
INTERRUPTED = 130

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON envelope.")]
"""The flag of every command: its parameter is called ``as_json``."""

P = ParamSpec("P")


@dataclass(frozen=True)
class Outcome:
    """What a command found: ``text`` for people, ``data`` for programs."""

    text: str
    data: dict[str, Any] = field(default_factory=dict)


def command(function: Callable[P, Outcome]) -> Callable[P, None]:
    """Turn a function that returns an :class:`Outcome` into a command that prints and exits.

    A keyword argument ``as_json`` of the function chooses the envelope.
    """

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        as_json = bool(kwargs.get("as_json"))
        try:
            outcome = function(*args, **kwargs)
            print(envelope(data=outcome.data) if as_json else outcome.text, flush=True)
        except (Exception, KeyboardInterrupt) as error:
            raise SystemExit(fail(error, as_json)) from None

    # typer reads the signature: a command returns nothing.
    run.__annotations__ = {**function.__annotations__, "return": None}
    return run


def fail(error: BaseException, as_json: bool) -> int:
    """Say what went wrong, as the envelope or on stderr; return the exit code."""
    if isinstance(error, KeyboardInterrupt):
        code, status = "interrupted", INTERRUPTED
        message = "interrupted"
        hint = "Run the command again: it goes on with what can be kept, and replaces the rest."
    else:
        known = _known(error)
        code, status, message, hint = known.code, known.exit_code, known.message, known.hint
    try:
        if as_json:
            print(envelope(code=code, message=message, hint=hint), flush=True)
            return status
        sys.stdout.flush()
    except OSError:
        # Nobody takes the result: let the interpreter not try again when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    print(f"blindsight: {message}", file=sys.stderr)
    if hint:
        print(f"  what to do: {hint}", file=sys.stderr)
    return status


def envelope(
    data: dict[str, Any] | None = None, code: str = "", message: str = "", hint: str = ""
) -> str:
    """Return the one JSON object that a command prints."""
    return json.dumps(
        {
            "schema_version": SCHEMA_VERSION,
            "status": "error" if code else "ok",
            "error_code": code or None,
            "message": message or None,
            "hint": hint or None,
            "data": data,
        },
        allow_nan=False,
    )


def _known(error: BaseException) -> BlindsightError:
    if isinstance(error, BlindsightError):
        return error
    if os.environ.get("BLINDSIGHT_DEBUG"):
        raise error
    if isinstance(error, BrokenPipeError):
        return StorageError("nobody reads the result any more", "Keep the other end of | open.")
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return storage_error(error.filename or "the result", error)
    if isinstance(error, OSError) and error.filename:
        return StorageError(f"{error.filename}: {error.strerror}", "Is it there, and yours?")
    return BlindsightError(
        f"something unforeseen happened: {type(error).__name__}: {error}",
        "Run it again with BLINDSIGHT_DEBUG=1 in the environment and report what it prints.",
    )


def say(text: str) -> None:
    """Talk: one line on stderr."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Show a bar for work of ``total`` steps; yields a function that takes the steps done."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f}" if total else ""),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)
        if total:
            bar.update(task, completed=total)
