"""An index is whole or absent, and says when it is damaged."""

from pathlib import Path

import numpy as np
import pytest

from client.institution.index import Index, build_index
from client.institution.pairs import Pair
from protocol.errors import DataError, StorageError

RELEASE = "0123456789abcdef"


def build(root: Path, count: int = 30, seed: int = 0) -> Index:
    rows = np.random.default_rng(seed).standard_normal((count, 8)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return build_index(root, RELEASE, rows, [Pair(f"{i}.png", (f"c{i}",)) for i in range(count)])


def test_what_was_built_can_be_searched(tmp_path: Path) -> None:
    index = build(tmp_path / "index")
    rows = index.embeddings()
    scores, positions = index.search(rows[4:5], 3)
    assert positions[0, 0] == 4
    assert scores[0, 0] == pytest.approx(1, abs=1e-5)
    assert [item.file_name for item in index.items([7, 2])] == ["7.png", "2.png"]
    index.verify()


def test_a_new_build_is_a_new_epoch_beside_the_old_one(tmp_path: Path) -> None:
    root = tmp_path / "index"
    old = build(root)
    new = build(root, seed=1)
    assert (old.manifest.epoch, new.manifest.epoch) == (1, 2)
    assert Index(root).manifest.epoch == 2
    assert old.embeddings().shape == (30, 8), "the old epoch can still be read"


def test_a_crash_while_building_leaves_the_old_epoch(tmp_path: Path) -> None:
    root = tmp_path / "index"
    build(root)

    def crash(blocks: int) -> None:
        raise KeyboardInterrupt

    rows = Index(root).embeddings()
    with pytest.raises(KeyboardInterrupt):
        build_index(root, RELEASE, rows, [Pair("a.png", ("c",))] * 30, progress=crash)
    assert Index(root).manifest.epoch == 1
    build(root)  # what was left of the interrupted build is used or replaced
    assert sorted(one.name for one in root.iterdir()) == [
        "current",
        "epoch-000001",
        "epoch-000002",
    ]
    assert Index(root).manifest.epoch == 2
    Index(root).verify()


@pytest.mark.parametrize("name", ["embeddings.faiss", "items.sqlite", "packed.bin"])
def test_damage_is_found(tmp_path: Path, name: str) -> None:
    index = build(tmp_path / "index")
    path = tmp_path / "index" / "epoch-000001" / name
    whole = bytearray(path.read_bytes())
    whole[-20] ^= 4
    path.write_bytes(whole)
    with pytest.raises(StorageError):
        index.verify()


def test_what_is_no_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no usable index"):
        Index(tmp_path)
    with pytest.raises(DataError, match="an embedding for each image"):
        build_index(tmp_path, RELEASE, np.empty((0, 8), np.float32), [])
