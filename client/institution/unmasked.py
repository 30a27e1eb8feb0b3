"""Which sums an institution has helped to unmask, so that it helps with none of them twice.

Two sums of the same round that differ in one participant give its update away by subtraction.
Where the institution has a folder ``state`` this lies there and outlives every process; else in
memory, as long as its node runs.
"""

import json
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from protocol.errors import MalformedMessage, StorageError
from protocol.files import read_bounded, write_atomically
from protocol.secure_aggregation.session import Session

FILE = "unmasked.json"
_MAX_BYTES = 4 << 20
_HINT = "restore it, or remove it: rounds of earlier runs can then be asked for again"


class Unmasked:
    """The last number that was unmasked, by run and purpose, in ``folder``, else in ``state``."""

    def __init__(self, state: MutableMapping[str, Any], folder: Path | None) -> None:
        self._state = state
        self._path = None if folder is None else folder / FILE

    def require_new(self, session: Session) -> None:
        """Raise MalformedMessage if this sum, or a later one of its run, was unmasked."""
        last = self._read().get(_key(session), -1)
        if session.number <= last:
            raise MalformedMessage(
                f"{session} is over here: {last} was unmasked, and none is unmasked twice",
                "go on with the next round",
            )

    def record(self, session: Session) -> None:
        """To be called before anything is revealed. Raises StorageError."""
        content = json.dumps(self._read() | {_key(session): session.number})
        if self._path is None:
            self._state["unmasked"] = content
        else:
            write_atomically(self._path, content)

    def _read(self) -> dict[str, int]:
        try:
            if self._path is None:
                content: str | bytes = self._state.get("unmasked", "{}")
            else:
                content = read_bounded(self._path, _MAX_BYTES, _HINT)
            found = json.loads(content)
            if not isinstance(found, dict) or not all(type(n) is int for n in found.values()):
                raise ValueError("not the form that it was written in")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise StorageError(f"{self._path} cannot be read: {error.strerror}", _HINT) from error
        except (ValueError, RecursionError) as error:
            raise StorageError(f"{self._path} is damaged: {error}", _HINT) from error
        return found


def _key(session: Session) -> str:
    return f"{session.federation}/{session.run}/{session.purpose}"
