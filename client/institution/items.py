"""The table of items: what lies at each position of an epoch, and in which forms it may leave."""

import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    Row,
    Table,
    Text,
    create_engine,
    delete,
    func,
    insert,
    select,
)
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import NullPool

from client.institution.packed import REBUILD
from client.institution.pairs import Pair
from protocol.errors import StorageError

_BATCH = 500  # of values in one statement

T = TypeVar("T")

_ITEMS = Table(
    "items",
    MetaData(),
    Column("position", Integer, primary_key=True, autoincrement=False),
    Column("file_name", Text, nullable=False, unique=True),
    Column("caption", Text, nullable=False),
    Column("sha256", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("changed_ns", BigInteger, nullable=False),
    Column("release", Text),
)


@dataclass(frozen=True, slots=True)
class Item:
    """One indexed image: its name in the institution's folder, and its first caption.

    ``sha256`` (hexadecimal), ``bytes`` and ``changed_ns`` are those of the image when it was
    embedded, "" and 0 where nobody looked. ``release`` names the forms in which it may leave
    (``pairs.FORMS``), None those that the service's policy names.
    """

    file_name: str
    caption: str
    sha256: str = ""
    bytes: int = 0
    changed_ns: int = 0
    release: frozenset[str] | None = None

    @classmethod
    def of(cls, pair: Pair, sha256: str = "", bytes: int = 0, changed_ns: int = 0) -> "Item":
        """Return the item of a pair."""
        return cls(pair.file_name, pair.captions[0], sha256, bytes, changed_ns, pair.release)

    def may_leave_as(self, form: str) -> bool:
        """Say whether the item's own rights allow ``form``; the service's policy must too."""
        return self.release is None or form in self.release


class ItemTable:
    """The table of one epoch, an SQLite file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def create(self, items: Iterable[Item]) -> None:
        """Write ``items``, in order of position, into a new file.

        Raises :class:`StorageError` for a full disk, or for a file name that is there twice.
        """
        self._path.touch(0o600)  # captions are as private as images
        with self._changed() as table:
            _ITEMS.create(table)
            _insert(table, enumerate(items))

    def copy(self, old: "ItemTable", changes: Mapping[int, Item], count: int) -> None:
        """Write the first ``count`` items of ``old``, with ``changes`` by position.

        What was removed is overwritten, not only unlinked. Raises what :meth:`create` does.
        """
        shutil.copyfile(old._path, self._path)
        self._path.chmod(0o600)
        with self._changed() as table:
            table.execute(delete(_ITEMS).where(_ITEMS.c.position >= count))
            for some in _runs(changes, _BATCH):
                table.execute(delete(_ITEMS).where(_ITEMS.c.position.in_(some)))
            _insert(table, changes.items())

    def at(self, positions: Sequence[int]) -> list[Item]:
        """Return the items at ``positions``, in that order; StorageError for one that is not."""
        found: dict[int, Item] = {}
        with self._read() as table:
            for some in _runs(positions, _BATCH):
                rows = table.execute(select(_ITEMS).where(_ITEMS.c.position.in_(some)))
                found.update((row.position, _item(row)) for row in rows)
        for position in positions:
            if position not in found:
                raise StorageError(f"{self._path} has no item at position {position}", REBUILD)
        return [found[position] for position in positions]

    def positions(self, file_names: Iterable[str]) -> dict[str, int]:
        """Return where each of ``file_names`` lies; one that is not indexed is left out."""
        found: dict[str, int] = {}
        with self._read() as table:
            for some in _runs(file_names, _BATCH):
                columns = select(_ITEMS.c.file_name, _ITEMS.c.position)
                rows = table.execute(columns.where(_ITEMS.c.file_name.in_(some)))
                found.update((name, position) for name, position in rows)
        return found

    def all(self) -> list[Item]:
        """Return every item, in order of position."""
        with self._read() as table:
            return [_item(row) for row in table.execute(select(_ITEMS).order_by("position"))]

    def is_whole(self, count: int) -> bool:
        """Say whether there are ``count`` items, at positions 0 to ``count`` - 1."""
        place = _ITEMS.c.position
        with self._read() as table:
            found = table.execute(select(func.count(), func.min(place), func.max(place))).one()
        return tuple(found) == (count, 0, count - 1)

    @contextmanager
    def _changed(self) -> Iterator[Connection]:
        def connect() -> sqlite3.Connection:
            connection = sqlite3.connect(self._path)
            # The file is of an epoch that is not whole yet: no journal on disk has to undo it.
            connection.executescript("PRAGMA journal_mode = MEMORY; PRAGMA secure_delete = ON")
            return connection

        try:
            with _engine(connect).begin() as table:
                yield table
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise StorageError(
                f"{self._path} cannot be written: {_said(error)}",
                "Free some space or choose another place, then run the command again.",
            ) from error

    @contextmanager
    def _read(self) -> Iterator[Connection]:
        def connect() -> sqlite3.Connection:
            # As a URI, or SQLite would make a file that is missing.
            return sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro", uri=True)

        try:
            with _engine(connect).connect() as table:
                yield table
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise StorageError(f"{self._path} cannot be read: {_said(error)}", REBUILD) from error


def _engine(connect: object) -> Engine:
    return create_engine("sqlite://", creator=connect, poolclass=NullPool)


def _runs(values: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(values)
    while some := list(islice(rest, size)):
        yield some


def _insert(table: Connection, items: Iterable[tuple[int, Item]]) -> None:
    for some in _runs(items, 20 * _BATCH):
        rows = [
            {
                "position": position,
                "file_name": item.file_name,
                "caption": item.caption,
                "sha256": item.sha256,
                "bytes": item.bytes,
                "changed_ns": item.changed_ns,
                "release": None if item.release is None else ",".join(sorted(item.release)),
            }
            for position, item in some
        ]
        table.execute(insert(_ITEMS), rows)


def _item(row: "Row[Any]") -> Item:
    forms = None if row.release is None else frozenset(row.release.split(",")) - {""}
    return Item(row.file_name, row.caption, row.sha256, row.bytes, row.changed_ns, forms)


def _said(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error)
