"""Items in PostgreSQL: a real server on a socket, and the whole life of an index."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Connection, create_engine, text
from sqlalchemy.exc import SQLAlchemyError

from client.institution.database import PLACE, Database, keep_items_in
from client.institution.index import Index
from client.institution.index_writer import IndexWriter
from client.institution.items import Item
from protocol.errors import StorageError, UsageError
from tests.client.unit_items import unit_vectors

RELEASE = "0123456789abcdef"


def programs() -> Path | None:
    """Where PostgreSQL's own programs are: Debian keeps them out of the way."""
    places = [Path(one).parent for one in [shutil.which("initdb")] if one]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((one for one in places if (one / "initdb").exists()), None)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server of its own, without a port."""
    where = programs()
    if where is None:
        pytest.skip("PostgreSQL's server is not installed")
    if find_spec("psycopg") is None:
        pytest.skip("psycopg is not installed: pip install 'blindsight[postgres]'")
    user = None
    if os.getuid() == 0:  # which the server refuses to be
        known = {one.pw_name for one in pwd.getpwall()}
        user = next((one for one in ("postgres", "nobody") if one in known), None)
        if user is None:
            pytest.skip("PostgreSQL refuses to run as root, and there is nobody else")
    # Not pytest's folder: that is for its own user, and too long a name for a socket.
    with tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, user)
        made = [where / "initdb", "-D", folder / "data", "-U", "test", "-A", "trust", "--no-sync"]
        done = subprocess.run(made, user=user, cwd="/", capture_output=True, text=True)
        if done.returncode:
            pytest.fail(f"initdb: {done.stderr[-300:]}")
        flags = ["-D", folder / "data", "-k", folder, "-c", "listen_addresses="]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [where / "postgres", *flags], user=user, cwd="/", stdout=log, stderr=log
            )
        try:
            url = f"postgresql+psycopg://test@/postgres?host={folder}"
            end = time.monotonic() + 60
            while time.monotonic() < end:
                with suppress(SQLAlchemyError), connected(url):
                    break
                time.sleep(0.1)
            else:
                pytest.fail((folder / "log").read_text()[-500:])
            yield url
        finally:
            process.send_signal(signal.SIGINT)  # "fast": it waits for nobody
            process.wait(20)


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    engine = create_engine(url)
    try:
        with engine.begin() as database:
            yield database
    finally:
        engine.dispose()


def tables(url: str) -> list[str]:
    with connected(url) as database:
        query = text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return sorted(database.scalars(query))


def rows_of(url: str) -> int:
    names = tables(url)
    with connected(url) as database:
        return sum(database.scalar(text(f'SELECT count(*) FROM "{name}"')) or 0 for name in names)


def test_the_life_of_an_index_whose_items_are_in_postgresql(server: str, tmp_path: Path) -> None:
    root, rows = tmp_path / "index", unit_vectors(300, 8)
    root.mkdir()
    keep_items_in(root, server)
    items = [Item(f"{i}.png", f"caption {i}", "ab" * 32, 2**40, 2**60) for i in range(200)]
    with IndexWriter(root) as writer:
        first = writer.build(RELEASE, rows[:200], items)
    first.verify()
    assert not list(root.glob("items-*")), "nothing of them is beside the index"
    put = [Item("new.png", "neu", release=frozenset({"caption"})), Item("7.png", "else")]
    with IndexWriter(root) as writer:
        second = writer.change(["3.png", "199.png"], put, {"new.png": rows[201]})
    second.verify()
    assert second.manifest.items == 199
    assert first.items([3])[0].file_name == "3.png", "who reads the old epoch goes on with it"
    found = {item.file_name: item for item in second.table.all()}
    assert set(found) == {f"{i}.png" for i in range(199) if i != 3} | {"new.png"}
    assert (found["7.png"].caption, found["new.png"].release) == ("else", frozenset({"caption"}))
    assert found["5.png"] == items[5]
    assert second.table.positions(["3.png", "new.png"]) == {"new.png": 3}
    assert second.table.rights() == {None: 198, frozenset({"caption"}): 1}
    assert rows_of(server) == 202, "those of the old epoch are kept for its reader"
    first.close()
    assert rows_of(server) == 199
    with IndexWriter(root) as writer:
        third = writer.build("f" * 16, rows[:50], items[:50])
    third.verify()
    assert len(tables(server)) == 2
    second.close()
    assert len(tables(server)) == 1 and rows_of(server) == 50


def test_two_indexes_share_a_database(server: str, tmp_path: Path) -> None:
    rows, opened = unit_vectors(30, 8), []
    for number in range(2):
        root = tmp_path / str(number)
        root.mkdir()
        keep_items_in(root, server)
        with IndexWriter(root) as writer:
            items = [Item(f"{number}-{i}.png", "") for i in range(30)]
            opened.append(writer.build(RELEASE, rows, items))
    with IndexWriter(tmp_path / "1") as writer:
        writer.change(["1-3.png"]).verify()
    assert opened[0].items([3])[0].file_name == "0-3.png"
    opened[0].verify()


def test_damage_in_the_database_is_found(server: str, tmp_path: Path) -> None:
    keep_items_in(tmp_path, server)
    with IndexWriter(tmp_path) as writer:
        index = writer.build(RELEASE, unit_vectors(9, 8), [Item(f"{i}.png", "") for i in range(9)])
    with connected(server) as database:
        name = Database(tmp_path).table_name(1)
        database.execute(text(f"UPDATE \"{name}\" SET caption = 'x' WHERE position = 4"))
    with pytest.raises(StorageError, match="damaged: items"):
        index.verify()
    with connected(server) as database:
        database.execute(text(f'DROP TABLE "{name}"'))
    with pytest.raises(StorageError, match="cannot be read") as caught:
        Index(tmp_path).items([0])
    assert "Is the database running" in caught.value.hint


def test_no_password_is_shown_or_readable(tmp_path: Path) -> None:
    keep_items_in(tmp_path, "postgresql://anna:secret@db.invalid/items")
    assert (tmp_path / PLACE).stat().st_mode & 0o777 == 0o600
    assert "secret" not in Database(tmp_path).where(1)
    assert "db.invalid" in Database(tmp_path).where(1)


@pytest.mark.parametrize("url", ["mysql://a@b/c", "sqlite:///x", "no url", "postgresql+x://a/b"])
def test_another_database_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(UsageError, match=r"database|PostgreSQL"):
        keep_items_in(tmp_path, url)


def test_an_index_that_is_there_stays_where_it_is(tmp_path: Path) -> None:
    with IndexWriter(tmp_path) as writer:
        writer.build(RELEASE, np.eye(3, 8, dtype=np.float32), [Item(f"{i}", "") for i in range(3)])
    with pytest.raises(UsageError, match="an index in"):
        keep_items_in(tmp_path, "postgresql://anna@db.invalid/items")


@pytest.mark.parametrize("place", ["{}", "[", '{"url": "postgresql://", "name": "a\\"; DROP"}'])
def test_a_place_that_cannot_be_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / PLACE).write_text(place)
    with pytest.raises(StorageError, match=r"database\.json cannot be read"):
        Database(tmp_path).where(1)
