"""Where an index keeps its tables of items: SQLite files in its folder, or a database by URL.

    ROOT/items-000001.sqlite   the table that the build of epoch 1 made
    ROOT/database.json         instead: the URL of a database, and this index's name in it

An SQLite file has one writer, which holds the index's lock; it syncs before an epoch is served.
"""

import re
import secrets
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy import Connection, Engine, create_engine, inspect, make_url, text
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from client.institution.packed import REBUILD
from protocol.errors import StorageError, UsageError
from protocol.files import read_bounded, write_atomically

PLACE = "database.json"
_DRIVER = "postgresql+psycopg"
_MAX_BYTES = 4096
_WAIT_SECONDS = 60.0
_SQLITE = re.compile(r"items-([0-9]{6,})\.sqlite")
_MORE = "Free some space or mend what is said, then run the command again."


class _Place(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    url: str
    name: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]


class Database:
    """The tables of the index in ``root``; raises :class:`StorageError` for what cannot be."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def table_name(self, since: int) -> str:
        """Return what the table of a build is called."""
        return f"items_{self._place.name}_{since:06d}" if self._place else "items"

    @property
    def dialect(self) -> str:
        """SQLAlchemy's word for what it speaks."""
        return "postgresql" if self._place else "sqlite"

    def where(self, since: int) -> str:
        """Return how people call it: no password is in it."""
        if self._place:
            return f"{make_url(self._place.url)!r} {self.table_name(since)}"
        return str(self._file(since))

    @contextmanager
    def writing(self, since: int) -> Iterator[Connection]:
        """A transaction, on disk when the block ends."""
        try:
            with self._engine(since, True).begin() as table:
                yield table
        except (SQLAlchemyError, sqlite3.Error) as error:
            raise StorageError(
                f"{self.where(since)} cannot be written: {_said(error)}", _MORE
            ) from error

    @contextmanager
    def reading(self, since: int) -> Iterator[Connection]:
        """A connection that reads."""
        try:
            with self._engine(since, False).connect() as table:
                yield table
        except (SQLAlchemyError, sqlite3.Error) as error:
            hint = "Is the database running?" if self._place else REBUILD
            raise StorageError(
                f"{self.where(since)} cannot be read: {_said(error)}", hint
            ) from error

    def is_sound(self, since: int) -> bool:
        """Say whether SQLite finds its file whole; another database looks after itself."""
        if self._place:
            return True
        try:
            with self.reading(since) as table:
                return bool(table.scalar(text("PRAGMA integrity_check")) == "ok")
        except StorageError:
            return False

    def builds(self) -> list[int]:
        """Return the builds of which there is a table."""
        if self._place is None:
            found = (_SQLITE.fullmatch(path.name) for path in self._root.glob("items-*.sqlite"))
            return sorted(int(one[1]) for one in found if one)
        begin = self.table_name(0).removesuffix("000000")
        with self.reading(0) as table:
            names = inspect(table).get_table_names()
        return sorted(int(one.removeprefix(begin)) for one in names if one.startswith(begin))

    def drop(self, since: int) -> None:
        """Delete the table of a build, if there is one."""
        if self._place is None:
            # The journal first: it would be played back into a file of the same name.
            for end in ("-journal", ""):
                self._file(since).with_name(self._file(since).name + end).unlink(missing_ok=True)
            return
        with self.writing(since) as table:
            table.execute(text(f'DROP TABLE IF EXISTS "{self.table_name(since)}"'))

    @property
    def bytes(self) -> int:
        """What SQLite files take on disk; 0 for another database."""
        return sum(path.stat().st_size for path in self._root.glob("items-*.sqlite*"))

    def _file(self, since: int) -> Path:
        return self._root / f"items-{since:06d}.sqlite"

    @cached_property
    def _place(self) -> _Place | None:
        try:
            return _Place.model_validate_json(
                read_bounded(self._root / PLACE, _MAX_BYTES, "See docs/operations.md.")
            )
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            raise StorageError(
                f"{self._root / PLACE} cannot be read: {type(error).__name__}",
                "Restore it from a backup, or delete it and build the index again.",
            ) from error

    @cached_property
    def _pool(self) -> Engine:
        assert self._place
        try:
            return create_engine(self._place.url, poolclass=NullPool)
        except ModuleNotFoundError as error:
            raise StorageError(
                f"a database needs the package {error.name}", "pip install 'blindsight[postgres]'"
            ) from error

    def _engine(self, since: int, write: bool) -> Engine:
        if self._place:
            return self._pool
        path = self._file(since)

        def connect() -> sqlite3.Connection:
            if write and not path.exists():
                path.touch(0o600)  # captions are as private as images
            # As a URI, or SQLite would make a file that is missing. A reader may write too: it
            # takes back what a writer that was killed had begun.
            uri = f"{path.absolute().as_uri()}?mode=rw"
            connection = sqlite3.connect(uri, _WAIT_SECONDS, uri=True)
            if write:
                # Readers wait while pages are written: all at once, at the end.
                connection.executescript("PRAGMA secure_delete = ON; PRAGMA cache_spill = OFF")
            return connection

        return create_engine("sqlite://", creator=connect, poolclass=NullPool)


def keep_items_in(root: Path, url: str) -> None:
    """Keep the items of the index in ``root``, from its first build on, in a database.

    ``url`` is SQLAlchemy's, of PostgreSQL. Several indexes may share a database. Raises
    :class:`UsageError` for another database, or if there is an index in ``root`` already.
    """
    try:
        made = make_url(url)
    except ArgumentError as error:
        raise UsageError("a database is named by a URL", _EXAMPLE) from error
    if made.drivername not in ("postgresql", _DRIVER):
        raise UsageError(f"expected a URL of PostgreSQL, got {made.drivername}", _EXAMPLE)
    if (root / "current").exists() or (root / PLACE).exists():
        raise UsageError(f"there is an index in {root} already", "Choose another folder for it.")
    url = made.set(drivername=_DRIVER).render_as_string(hide_password=False)
    place = _Place(url=url, name=secrets.token_hex(8))
    write_atomically(root / PLACE, place.model_dump_json())


_EXAMPLE = "postgresql://NAME@HOST/DATABASE, for instance."


def _said(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip()
