"""What searchers have used up of today's budgets, in SQLite: on disk before an answer leaves.

Write-ahead log with ``synchronous=FULL``: a commit is synced, so a charge survives ``kill -9`` and
a power cut. Several processes may charge one ledger. The day never goes back: a clock that is set
back gives nothing again, and one that ran ahead gives the next day only when it comes.
"""

import os
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from protocol.errors import StorageError
from protocol.files import storage_error, sync_folder

Kind = Literal["question", "item"]
_WAIT_SECONDS = 30.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS used (
    searcher TEXT, kind TEXT, day INTEGER, count INTEGER, PRIMARY KEY (searcher, kind)
) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Charge:
    """``count`` of a kind for a searcher (its key's fingerprint) who has ``budget`` of it a day."""

    searcher: str
    kind: Kind
    count: int
    budget: int


class Ledger:
    """The ledger in the file ``path``; for one thread at a time."""

    def __init__(self, path: Path) -> None:
        """Open it, or begin it. Raises StorageError."""
        self._path = path
        try:
            with suppress(FileExistsError):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
                sync_folder(path.parent)
            self._table = sqlite3.connect(
                path, timeout=_WAIT_SECONDS, isolation_level=None, check_same_thread=False
            )
            self._table.execute("PRAGMA journal_mode=WAL")
            self._table.execute("PRAGMA synchronous=FULL")
            self._table.execute(_SCHEMA)
        except OSError as error:
            raise storage_error(path, error) from error
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def charge(self, charges: Sequence[Charge], today: int) -> list[int | None]:
        """Charge each that its budget has room for, all in one commit.

        Says what is left of each budget, None where it had no room. ``today`` counts days from
        1970 (UTC). Raises StorageError; then nothing is charged.
        """
        try:
            self._table.execute("BEGIN IMMEDIATE")
            try:
                row = self._table.execute("SELECT MAX(day) FROM used").fetchone()
                day = max(today, row[0] or 0)
                done = [self._charge(one, day) for one in charges]
                self._table.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):
                    self._table.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._unusable(error) from error
        return done

    def used(self, searcher: str, kind: Kind) -> int:
        """What a searcher has used up on the latest day it was charged."""
        row = self._table.execute(
            "SELECT count FROM used WHERE searcher = ? AND kind = ?", (searcher, kind)
        ).fetchone()
        return int(row[0]) if row else 0

    def close(self) -> None:
        """Close the file."""
        self._table.close()

    def _charge(self, one: Charge, day: int) -> int | None:
        row = self._table.execute(
            "SELECT count FROM used WHERE searcher = ? AND kind = ? AND day = ?",
            (one.searcher, one.kind, day),
        ).fetchone()
        count = (row[0] if row else 0) + one.count
        if count > one.budget:
            return None
        self._table.execute(
            "INSERT OR REPLACE INTO used VALUES (?, ?, ?, ?)", (one.searcher, one.kind, day, count)
        )
        return one.budget - count

    def _unusable(self, error: sqlite3.Error) -> StorageError:
        return StorageError(
            f"{self._path} cannot be used: {error}",
            "Free some space or mend its permissions; no question is answered until then.",
        )
