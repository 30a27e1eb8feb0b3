"""The passphrase of the authority's key: from a file, the environment, or a person at a terminal.

It is asked for by the commands that sign (``federation approve``, ``revoke``, ``renew``), and never
stands on a command line, which every user of a machine can read.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import typer

from protocol.errors import UsageError
from protocol.files import read_bounded

VARIABLE = "BLINDSIGHT_AUTHORITY_PASSPHRASE"
#: What ``cryptography`` takes.
_MAX_BYTES = 1023
_LEAST = 8
_HINT = f"Name the file that has it (--passphrase-file), or set {VARIABLE}."


@dataclass(frozen=True, slots=True)
class Passphrase:
    """Where to look for it: the first line of ``file``, if one is given, comes first."""

    file: Path | None = None

    def ask(self) -> bytes:
        """The passphrase of a key that has one. Raises UsageError where nobody can be asked."""
        found = self._said()
        if found is None and sys.stdin.isatty():
            found = _typed("The passphrase of the authority's key", False)
        if not found:
            raise UsageError("the authority's key has a passphrase, and none was given", _HINT)
        return found

    def choose(self) -> bytes | None:
        """The passphrase for a new key; None where nobody is there to choose one, or wants none.

        Raises UsageError for one that is too short or too long.
        """
        found = self._said()
        if found is None and sys.stdin.isatty():
            text = "A passphrase for the authority's key (empty for none)"
            found = _typed(text, True) or None
        if found is not None and not _LEAST <= len(found) <= _MAX_BYTES:
            raise UsageError(
                f"a passphrase has {_LEAST} to {_MAX_BYTES:,} bytes, this one has {len(found)}",
                "Choose another: six words that do not belong together, for example.",
            )
        return found

    def _said(self) -> bytes | None:
        if self.file is None:
            given = os.environ.get(VARIABLE)
            return None if given is None else given.encode()
        try:
            lines = read_bounded(self.file, 2 * _MAX_BYTES, _HINT).splitlines()
        except OSError as error:
            raise UsageError(f"{self.file} cannot be read: {error.strerror}", _HINT) from error
        return lines[0] if lines else b""


def _typed(text: str, twice: bool) -> bytes:
    found = typer.prompt(
        text, default="", show_default=False, hide_input=True, confirmation_prompt=twice, err=True
    )
    return str(found).encode()
