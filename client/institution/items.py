"""The table of items: what lies at each position of an index, in SQLite."""

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from client.institution.packed import REBUILD
from client.institution.pairs import Pair
from protocol.errors import StorageError


@dataclass(frozen=True)
class Item:
    """One indexed image: its name in the institution's folder, and its first caption."""

    file_name: str
    caption: str


def write_items(path: Path, pairs: Sequence[Pair]) -> None:
    """Write the items of ``pairs``, in order; raise :class:`StorageError` for a full disk."""
    path.touch(0o600)  # captions are as private as images
    try:
        with closing(sqlite3.connect(path)) as table, table:
            table.execute(
                "CREATE TABLE items (position INTEGER PRIMARY KEY, file_name TEXT, caption TEXT)"
            )
            rows = ((i, pair.file_name, pair.captions[0]) for i, pair in enumerate(pairs))
            table.executemany("INSERT INTO items VALUES (?, ?, ?)", rows)
    except sqlite3.Error as error:
        raise StorageError(
            f"{path} cannot be written: {error}",
            "Free some space or choose another place, then run the command again.",
        ) from error


def read_items(path: Path, positions: Sequence[int]) -> list[Item]:
    """Return the items at ``positions``, in that order; raise :class:`StorageError` if it fails."""
    query = "SELECT file_name, caption FROM items WHERE position = ?"
    try:
        # As a URI, or SQLite would make a file that is missing.
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as table:
            rows = [table.execute(query, (position,)).fetchone() for position in positions]
    except sqlite3.Error as error:
        raise StorageError(f"{path} cannot be read: {error}", REBUILD) from error
    if None in rows:
        missing = positions[rows.index(None)]
        raise StorageError(f"{path} has no item at position {missing}", REBUILD)
    return [Item(*row) for row in rows]
