"""Items, and the table of them: what lies at each position, and in which forms it may leave.

A table is made by a build and serves all epochs up to the next one. A row says since which epoch
it holds and, once another took its place, since which it does not: so a change writes its own rows
alone, and readers of an older epoch go on with theirs.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Index,
    Integer,
    MetaData,
    Row,
    Table,
    Text,
    UniqueConstraint,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from client.institution.database import Database
from client.institution.packed import REBUILD
from client.institution.pairs import Pair
from protocol.errors import StorageError

_BATCH = 500  # of values in one statement
_MODULUS = 1 << 256
_TOLD = ("position", "file_name", "caption", "sha256", "bytes", "changed_ns", "release", "at_most")

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Item:
    """One indexed image: its name in the institution's folder, and its first caption.

    ``sha256`` (hexadecimal), ``bytes`` and ``changed_ns`` are those of the image when it was
    embedded, "" and 0 where nobody looked. ``release`` are the forms (``pairs.FORMS``) in which it
    may leave by its collection's own word, ``at_most`` those that ``blindsight index rights``
    allows, which holds until it says otherwise; None is whatever the service's policy names.
    """

    file_name: str
    caption: str
    sha256: str = ""
    bytes: int = 0
    changed_ns: int = 0
    release: frozenset[str] | None = None
    at_most: frozenset[str] | None = None

    @classmethod
    def of(cls, pair: Pair, sha256: str = "", bytes: int = 0, changed_ns: int = 0) -> "Item":
        """Return the item of a pair."""
        return cls(pair.file_name, pair.captions[0], sha256, bytes, changed_ns, pair.release)

    def may_leave_as(self, form: str) -> bool:
        """Say whether the item's own rights allow ``form``; the service's policy must too."""
        return self.rights is None or form in self.rights

    @property
    def rights(self) -> frozenset[str] | None:
        """The forms in which it may leave, whoever says so; None is as the policy says."""
        if self.release is None or self.at_most is None:
            return self.at_most if self.release is None else self.release
        return self.release & self.at_most


class ItemTable:
    """The items of one ``epoch``, in the table that the build of epoch ``since`` made.

    Every method raises :class:`StorageError` for a table that cannot be read or written.
    """

    def __init__(self, database: Database, since: int, epoch: int) -> None:
        self._database, self._since, self._epoch = database, since, epoch
        self._items = _table(database.table_name(since), database.dialect)
        self._told = [self._items.c[name] for name in _TOLD]

    def create(self, items: Iterable[Item]) -> str:
        """Make the table of ``items``, in order of position; return what they hash to.

        What a build that was killed left of it goes. Raises :class:`StorageError` for a full
        disk, or for a file name that is there twice.
        """
        self._database.drop(self._since)
        with self._database.writing(self._since) as table:
            self._items.create(table)
            return self._put(table, enumerate(items), 0)

    def follow(self, epoch: int, changes: Mapping[int, Item], count: int, digest: str) -> str:
        """Make the rows of ``epoch``: the first ``count`` items, with ``changes`` by position.

        ``digest`` is what this epoch's items hash to; returns what the new one's do. Until that
        epoch is served nobody reads them, and a later call takes them back. Raises what
        :meth:`create` does.
        """
        row, total = self._items.c, int(digest, 16)
        with self._database.writing(self._since) as table:
            # Of a change that was killed before its epoch was served.
            table.execute(delete(self._items).where(row.added > self._epoch))
            table.execute(update(self._items).where(row.removed > self._epoch).values(removed=None))
            gone = [row.position >= count]
            gone += [row.position.in_(some) for some in _runs(changes, _BATCH)]
            for condition in gone:
                which = condition & self._held()
                total -= sum(map(_hash, table.execute(select(*self._told).where(which))))
                table.execute(update(self._items).where(which).values(removed=epoch))
            return self._put(table, changes.items(), total, epoch)

    def forget(self) -> None:
        """Delete the rows that no epoch from this one on holds: overwritten, in SQLite."""
        removed = self._items.c.removed
        with self._database.writing(self._since) as table:
            if table.scalar(select(func.min(removed)).where(removed <= self._epoch)) is not None:
                table.execute(delete(self._items).where(removed <= self._epoch))

    def at(self, positions: Sequence[int]) -> list[Item]:
        """Return the items at ``positions``, in that order; StorageError for one that is not."""
        found: dict[int, Item] = {}
        for some in _runs(positions, _BATCH):
            rows = self._read(select(self._items).where(self._items.c.position.in_(some)))
            found.update((row.position, _item(row)) for row in rows)
        for position in positions:
            if position not in found:
                raise StorageError(f"{self} has no item at position {position}", REBUILD)
        return [found[position] for position in positions]

    def positions(self, file_names: Iterable[str]) -> dict[str, int]:
        """Return where each of ``file_names`` lies; one that is not indexed is left out."""
        found: dict[str, int] = {}
        columns = select(self._items.c.file_name, self._items.c.position)
        for some in _runs(file_names, _BATCH):
            rows = self._read(columns.where(self._items.c.file_name.in_(some)))
            found.update((row.file_name, row.position) for row in rows)
        return found

    def all(self) -> list[Item]:
        """Return every item, in order of position."""
        return [_item(row) for row in self._read(select(self._items).order_by("position"))]

    def rights(self) -> Counter[frozenset[str] | None]:
        """Return how many items have which :attr:`Item.rights`."""
        row, found = self._items.c, Counter[frozenset[str] | None]()
        told = select(row.release, row.at_most, func.count().label("items"))
        for one in self._read(told.group_by(row.release, row.at_most)):
            item = Item("", "", release=_forms(one.release), at_most=_forms(one.at_most))
            found[item.rights] += one.items
        return found

    def limits(self) -> dict[str, frozenset[str]]:
        """Return what ``blindsight index rights`` said, by file name."""
        row = self._items.c
        rows = self._read(select(row.file_name, row.at_most).where(row.at_most.is_not(None)))
        return {one.file_name: _forms(one.at_most) or frozenset() for one in rows}

    def is_whole(self, count: int, digest: str) -> bool:
        """Read all: say whether it is sound, and holds what hashes to ``digest``, in its places."""
        if not self._database.is_sound(self._since):
            return False
        total = found = 0
        query = select(*self._told).where(self._held()).order_by("position")
        with self._database.reading(self._since) as table:
            for row in table.execute(query.execution_options(yield_per=_BATCH)):
                if row.position != found:
                    return False
                total, found = total + _hash(row), found + 1
        return found == count and f"{total % _MODULUS:064x}" == digest

    def __str__(self) -> str:
        return self._database.where(self._since)

    def _held(self) -> ColumnElement[bool]:
        """The condition of what this epoch holds."""
        row = self._items.c
        return (row.added <= self._epoch) & or_(row.removed.is_(None), row.removed > self._epoch)

    def _read(self, query: Any) -> "Sequence[Row[Any]]":
        with self._database.reading(self._since) as table:
            return table.execute(query.where(self._held())).all()

    def _put(
        self, table: Connection, items: Iterable[tuple[int, Item]], total: int, epoch: int = 0
    ) -> str:
        for some in _runs(items, 20 * _BATCH):
            rows = [_row(position, item) for position, item in some]
            total += sum(map(_hash, rows))
            told = [dict(zip(_TOLD, row, strict=True)) for row in rows]
            table.execute(insert(self._items).values(added=epoch or self._since), told)
        return f"{total % _MODULUS:064x}"


def _table(name: str, dialect: str) -> Table:
    table = Table(
        name,
        MetaData(),
        Column("position", Integer, primary_key=True, autoincrement=False),
        Column("added", Integer, primary_key=True, autoincrement=False),
        Column("removed", Integer),
        Column("file_name", Text, nullable=False),
        Column("caption", Text, nullable=False),
        Column("sha256", Text, nullable=False),
        Column("bytes", BigInteger, nullable=False),
        Column("changed_ns", BigInteger, nullable=False),
        Column("release", Text),
        Column("at_most", Text),
        UniqueConstraint("file_name", "added"),
        sqlite_with_rowid=False,
    )
    gone = table.c.removed
    # Of one dialect alone: SQLAlchemy loads all drivers of another that is named.
    some: dict[str, Any] = {f"{dialect}_where": gone.is_not(None)}
    Index(f"{name}_removed", gone, **some)
    return table


def _runs(values: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(values)
    while some := list(islice(rest, size)):
        yield some


def _row(position: int, item: Item) -> tuple[object, ...]:
    rights = [
        None if forms is None else ",".join(sorted(forms)) for forms in (item.release, item.at_most)
    ]
    told = (item.file_name, item.caption, item.sha256, item.bytes, item.changed_ns, *rights)
    return (position, *told)


def _forms(told: str | None) -> frozenset[str] | None:
    return None if told is None else frozenset(told.split(",")) - {""}


def _hash(row: "Row[Any] | tuple[object, ...]") -> int:
    """Return 256 bits of an item in its place; all items hash to their sum modulo 2^256.

    That finds damage, not forgery: who can write the table can write the manifest.
    """
    return int.from_bytes(hashlib.sha256(repr(tuple(row)).encode()).digest(), "big")


def _item(row: "Row[Any]") -> Item:
    rights = _forms(row.release), _forms(row.at_most)
    return Item(row.file_name, row.caption, row.sha256, row.bytes, row.changed_ns, *rights)
