"""An index is whole or absent, and says when it is damaged."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray

from client.institution.index import Index
from client.institution.index_writer import build_index
from client.institution.pairs import Pair
from protocol.errors import DataError, StorageError, UsageError
from protocol.params import PRIVATE
from protocol.plan import Costs, best, plans

ROOT = Path(__file__).parents[2]
RELEASE = "0123456789abcdef"
FILES = ["embeddings-000000.faiss", "embeddings.sha256", "manifest.json", "packed-000000.bin"]
ITEMS = "items-000001.sqlite"


def unit_vectors(count: int, dim: int, seed: int = 0) -> NDArray[np.float32]:
    rows = np.random.default_rng(seed).standard_normal((count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def some_pairs(count: int) -> list[Pair]:
    return [Pair(f"{i}.png", (f"c{i}",)) for i in range(count)]


def build(root: Path, count: int = 30, seed: int = 0) -> Index:
    return build_index(root, RELEASE, unit_vectors(count, 8, seed), some_pairs(count))


def names(folder: Path) -> list[str]:
    return sorted(one.name for one in folder.iterdir())


def test_what_was_built_can_be_searched(tmp_path: Path) -> None:
    index = build(tmp_path / "index")
    rows = index.embeddings()
    scores, positions = index.search(rows[4:5], 3)
    assert positions[0, 0] == 4
    assert scores[0, 0] == pytest.approx(1, abs=1e-5)
    assert [item.file_name for item in index.items([7, 2])] == ["7.png", "2.png"]
    index.verify()


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    build(tmp_path)
    for name in (ITEMS, *(f"epoch-000001/{name}" for name in FILES)):
        mode = (tmp_path / name).stat().st_mode
        assert mode & 0o777 == 0o600, name


def test_a_new_build_is_a_new_epoch_beside_the_old_one(tmp_path: Path) -> None:
    root = tmp_path / "index"
    old = build(root)
    new = build(root, seed=1)
    assert (old.manifest.epoch, new.manifest.epoch) == (1, 2)
    assert Index(root).manifest.epoch == 2
    assert old.embeddings().shape == (30, 8), "the old epoch can still be read"


def test_an_open_index_knows_of_a_newer_epoch(tmp_path: Path) -> None:
    old = build(tmp_path)
    assert old.is_current
    new = build(tmp_path, seed=1)
    assert (old.is_current, new.is_current) == (False, True)
    blocks = old.packed.blocks
    first = blocks[0].copy()
    old.close()
    old.close()
    assert np.array_equal(blocks[0], first), "who still scores is not disturbed"
    (tmp_path / "current").unlink()
    assert not new.is_current


@pytest.mark.parametrize("goal", ["bytes", "latency"])
@pytest.mark.parametrize("costs", [None, Costs(1.0, 1000.0), Costs(1000.0, 1.0)])
def test_it_is_packed_as_was_planned(tmp_path: Path, goal: str, costs: Costs | None) -> None:
    rows = unit_vectors(500, 200)
    pairs = some_pairs(len(rows))
    index = build_index(tmp_path, RELEASE, rows, pairs, goal=goal, costs=costs)
    assert index.packed.layout == best(plans(PRIVATE, 200, 500, costs or Costs()), goal).layout


def test_a_crash_while_building_leaves_the_old_epoch(tmp_path: Path) -> None:
    root = tmp_path / "index"
    build(root)

    def crash(blocks: int) -> None:
        raise KeyboardInterrupt

    rows = Index(root).embeddings()
    with pytest.raises(KeyboardInterrupt):
        build_index(root, RELEASE, rows, some_pairs(30), progress=crash)
    assert Index(root).manifest.epoch == 1
    build(root)  # what was left of the interrupted build is used or replaced
    assert names(root) == ["building.lock", "current", "epoch-000002", "items-000002.sqlite"], (
        "nobody reads the old one"
    )
    assert names(root / "epoch-000002") == FILES
    assert Index(root).manifest.epoch == 2
    Index(root).verify()


def test_a_killed_build_goes_on_with_its_packing(tmp_path: Path) -> None:
    """Killed while it packs, with the temporary files of a build that was killed earlier."""
    root = tmp_path / "index"
    build(root)
    rows = unit_vectors(40_000, 8)
    np.save(tmp_path / "rows.npy", rows)
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from pathlib import Path
from client.institution.index_writer import build_index
from client.institution.pairs import Pair
rows = np.load(sys.argv[2])

seen = []

def progress(done):
    print(done, flush=True)
    seen.append(done)
    if len(seen) == 3: os.kill(os.getpid(), signal.SIGKILL)

pairs = [Pair(f"{{i}}.png", ("c",)) for i in range(len(rows))]
build_index(Path(sys.argv[1]), {RELEASE!r}, rows, pairs, progress=progress)
"""
    command = [sys.executable, "-c", script, str(root), str(tmp_path / "rows.npy")]
    killed = subprocess.run(command, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert len(killed.stdout.split()) == 3
    assert Index(root).manifest.epoch == 1
    for name in (".embeddings-000000.faiss.x7", "embeddings.faiss", "packed.bin", "manifest.json"):
        (root / "building-000002" / name).write_text("of a build that was killed")

    packed = {path.name: path.stat().st_ino for path in (root / "building-000002").glob("packed-*")}
    seen: list[int] = []
    index = build_index(root, RELEASE, rows, some_pairs(len(rows)), progress=seen.append)
    assert seen[-1] == index.layout.blocks
    kept = [
        index.folder / name
        for name, inode in packed.items()
        if (index.folder / name).exists() and (index.folder / name).stat().st_ino == inode
    ]
    assert len(kept) == 3, "what was packed is not packed again"
    assert not set(names(index.folder)) & {
        ".embeddings-000000.faiss.x7",
        "embeddings.faiss",
        "packed.bin",
    }
    assert np.array_equal(index.embeddings(), rows)
    index.verify()


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "index"
    build(root)
    rows = np.full((30, 8), 2, np.float32)
    with pytest.raises(UsageError, match="norm 1 at most"):
        build_index(root, RELEASE, rows, some_pairs(30))
    assert names(root) == ["building.lock", "current", "epoch-000001", ITEMS]
    assert Index(root).manifest.epoch == 1


def test_a_second_build_is_refused_while_the_first_one_runs(tmp_path: Path) -> None:
    root, rows, pairs = tmp_path / "index", unit_vectors(30, 8), some_pairs(30)
    refused: list[str] = []

    def build_another(done: int) -> None:
        with pytest.raises(StorageError, match="another process is writing") as caught:
            build(root)
        refused.append(caught.value.hint)

    build_index(root, RELEASE, rows, pairs, progress=build_another).verify()
    assert refused and "Wait" in refused[0]
    assert names(root) == ["building.lock", "current", "epoch-000001", ITEMS]


def test_a_full_disk_is_said_and_leaves_the_old_epoch(tmp_path: Path) -> None:
    """Full for FAISS's file, for SQLite's and for the packed one: by a limit on file size."""
    root = tmp_path / "index"
    build(root)
    script = f"""
import resource, sys
sys.path.insert(0, {str(ROOT)!r})
import numpy as np
from pathlib import Path
from client.institution.index_writer import build_index
from client.institution.pairs import Pair
from protocol.errors import StorageError
rows = np.eye(8, dtype=np.float32)[np.arange(2000) % 8]
pairs = [Pair(f"{{i}}.png", ("c",)) for i in range(len(rows))]
for limit in (50_000, 100_000, 190_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        build_index(Path(sys.argv[1]), {RELEASE!r}, rows, pairs)
    except StorageError as error:
        assert error.hint
        print(error.message)
"""
    done = subprocess.run([sys.executable, "-c", script, str(root)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 3
    epoch = "building-000002"
    where = [f"{epoch}/{FILES[0]}", "items-000002.sqlite", f"{epoch}/{FILES[3]}"]
    for line, name in zip(said, where, strict=True):
        assert f"{name} cannot be written" in line
    assert names(root) == ["building.lock", "current", "epoch-000001", ITEMS]
    build(root).verify()


@pytest.mark.parametrize(
    ("name", "place"), [(FILES[0], -20), (FILES[1], -20), (FILES[3], -20), (ITEMS, b"c2")]
)
def test_damage_is_found(tmp_path: Path, name: str, place: int | bytes) -> None:
    index = build(tmp_path / "index")
    path = (tmp_path / "index" if name == ITEMS else index.folder) / name
    whole = bytearray(path.read_bytes())
    whole[place if isinstance(place, int) else whole.index(place)] ^= 4
    path.write_bytes(whole)
    with pytest.raises(StorageError, match="damaged"):
        index.verify()
    path.unlink()
    with pytest.raises(StorageError):
        Index(tmp_path / "index").verify()


def test_the_packed_form_of_other_embeddings_is_found(tmp_path: Path) -> None:
    build(tmp_path / "index")
    other = build(tmp_path / "other", seed=1)
    name = "packed-000000.bin"
    shutil.copy(other.folder / name, tmp_path / "index" / "epoch-000001" / name)
    with pytest.raises(StorageError, match=r"damaged: packed-000000\.bin"):
        Index(tmp_path / "index").verify()


# --- the embeddings


def test_the_embeddings_are_kept_as_faiss_keeps_them(tmp_path: Path) -> None:
    rows = unit_vectors(5000, 24)
    mapped = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, rows.shape)
    mapped[:] = rows
    build_index(tmp_path / "index", RELEASE, mapped, some_pairs(len(rows)))
    store = faiss.IndexFlatIP(24)
    store.add(rows)
    faiss.write_index(store, str(tmp_path / "by.faiss"))
    ours = tmp_path / "index" / "epoch-000001" / "embeddings-000000.faiss"
    assert ours.read_bytes() == (tmp_path / "by.faiss").read_bytes()
    question = unit_vectors(3, 24, seed=5)
    for got, expected in zip(
        Index(tmp_path / "index").search(question, 7), store.search(question, 7), strict=True
    ):
        assert np.array_equal(got, expected)


def test_a_service_maps_the_embeddings(tmp_path: Path) -> None:
    """The process's own memory does not grow by them, neither to read one nor to search."""
    rows = unit_vectors(30_000, 256)
    build_index(tmp_path, RELEASE, rows, some_pairs(len(rows)))
    script = f"""
import re, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from client.institution.index import Index

def own():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

before = own()
Index(Path(sys.argv[1])).embedding(29_999)
print(own() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert int(done.stdout) < 5_000, "of 30,000 kB of embeddings"


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:30],
        lambda content: content[:-1],
        lambda content: b"IxF2" + content[4:],
        lambda content: content[:8] + (10**12).to_bytes(8, "little") + content[16:],
        lambda content: content[:4] + (9).to_bytes(4, "little") + content[8:],
    ],
    ids=["empty", "head", "cut", "kind", "items", "dim"],
)
def test_embeddings_that_faiss_cannot_read_are_refused(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    index = build(tmp_path)
    path = tmp_path / "epoch-000001" / "embeddings-000000.faiss"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StorageError, match=r"embeddings-000000\.faiss") as caught:
        index.embedding(0)
    assert "Build it again" in caught.value.hint


# --- items and the manifest


@pytest.mark.parametrize("name", ["a b", "50%20", "why?mode=rw", "#1", "é"])
def test_items_are_read_wherever_the_index_lies(tmp_path: Path, name: str) -> None:
    index = build(tmp_path / name)
    assert [item.caption for item in index.items([29, 0])] == ["c29", "c0"]


def test_items_that_cannot_be_read_are_said(tmp_path: Path) -> None:
    index, path = build(tmp_path), tmp_path / ITEMS
    with pytest.raises(StorageError, match=r"items-000001\.sqlite has no item at position 30"):
        index.items([2, 30])
    path.write_bytes(b"no database" * 500)
    with pytest.raises(
        StorageError, match=r"items-000001\.sqlite cannot be read: .*not a database"
    ):
        index.items([0])
    path.unlink()
    with pytest.raises(StorageError, match="unable to open") as caught:
        index.items([0])
    assert "Build it again" in caught.value.hint
    assert not path.exists()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"items": 30.0}, "items Input should be a valid integer"),
        ({"items": "30"}, "items Input should be a valid integer"),
        ({"items": 0}, "1 to 2^40 - 1 items"),
        ({"dim": True}, "dim Input should be a valid integer"),
        ({"dim": 5000}, "1 to 1024 coordinates"),
        ({"chunk_width": 3}, "chunk width is one of"),
        ({"preset": "none"}, "parameter set 'none' is unknown"),
        ({"release_id": None}, "release_id Input should be a valid string"),
        ({"more": 1}, "more Extra inputs are not permitted"),
        ({"checksums": []}, "checksums Input should be"),
        ({"checksums": {"packed": "0"}}, "of embeddings, items, packed expected"),
        ({"release_id": "x" * 100_000}, "at most 65,536 bytes"),
    ],
    ids=lambda one: str(one)[:20],
)
def test_a_manifest_that_cannot_be_is_refused(
    tmp_path: Path, change: dict[str, object], says: str
) -> None:
    build(tmp_path)
    path = tmp_path / "epoch-000001" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(StorageError, match="no usable index") as caught:
        Index(tmp_path)
    assert says in caught.value.message
    assert "Build it again" in caught.value.hint


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[" * 60_000, b"\xff", b"[1]", b"null"], ids=lambda one: str(one[:9])
)
@pytest.mark.parametrize("name", ["current", "epoch-000001/manifest.json"])
def test_what_is_not_json_or_a_number_is_refused(tmp_path: Path, name: str, text: bytes) -> None:
    build(tmp_path)
    (tmp_path / name).write_bytes(text)
    with pytest.raises(StorageError, match="no usable index"):
        Index(tmp_path)


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no usable index"):
        Index(tmp_path)
    with pytest.raises(DataError, match="an embedding for each image"):
        build_index(tmp_path, RELEASE, np.empty((0, 8), np.float32), [])
