"""Segments are one packed form; other items re-pack only the segments that they touch."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from client.institution.packed import PackedIndex, write_packed
from client.institution.predecessor import Predecessor
from client.institution.segments import (
    PackedSegments,
    damaged_segments,
    segment_items,
    segment_paths,
    write_segments,
)
from protocol.errors import StorageError
from protocol.packing import Layout
from protocol.params import PRIVATE

DIM, ITEMS = 20, 32 * 70 + 5


def unit_vectors(count: int) -> NDArray[np.float32]:
    rows = np.random.default_rng(0).standard_normal((count, DIM)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def layout_of(rows: NDArray[np.float32]) -> Layout:
    return Layout(PRIVATE, DIM, 128, len(rows))


def write(folder: Path, rows: NDArray[np.float32], old: Path | None = None) -> int:
    folder.mkdir(exist_ok=True)
    before = Predecessor(old, ITEMS) if old else None
    return write_segments(folder, layout_of(rows), rows, before)


def test_segments_read_as_one_file_does(tmp_path: Path) -> None:
    rows = unit_vectors(ITEMS)
    assert write(tmp_path / "new", rows) == layout_of(rows).blocks
    write_packed(tmp_path / "one.bin", layout_of(rows), rows)
    segments = PackedSegments(tmp_path / "new", layout_of(rows))
    assert len(segment_paths(tmp_path / "new", layout_of(rows))) > 2
    assert np.array_equal(segments.blocks, PackedIndex(tmp_path / "one.bin").blocks)


@pytest.mark.parametrize("change", ["add", "remove", "replace"])
def test_only_touched_segments_are_packed(tmp_path: Path, change: str) -> None:
    rows = unit_vectors(ITEMS + 3)
    old, new = tmp_path / "old", tmp_path / "new"
    write(old, rows[:ITEMS])
    if change == "add":
        changed = rows
    elif change == "remove":
        changed = rows[: ITEMS - 2]
    else:
        changed = rows[:ITEMS].copy()
        changed[0] = rows[-1]
    size = segment_items(layout_of(rows))
    assert 0 < write(new, changed, old) <= size // 32
    same = [path.samefile(old / path.name) for path in segment_paths(new, layout_of(changed))]
    assert same.count(False) == 1 and same[0 if change == "replace" else -1] is False
    write_packed(tmp_path / "one.bin", layout_of(changed), changed)
    assert np.array_equal(
        PackedSegments(new, layout_of(changed)).blocks, PackedIndex(tmp_path / "one.bin").blocks
    )
    assert write(new, changed) == 0, "what is there is kept"


def test_damage_in_a_segment_is_found(tmp_path: Path) -> None:
    rows = unit_vectors(ITEMS)
    write(tmp_path / "new", rows)
    assert damaged_segments(tmp_path / "new", layout_of(rows), rows) == []
    path = segment_paths(tmp_path / "new", layout_of(rows))[1]
    content = bytearray(path.read_bytes())
    content[-7] ^= 1
    path.write_bytes(content)
    assert damaged_segments(tmp_path / "new", layout_of(rows), rows) == [path.name]
    write_segments(tmp_path / "new", layout_of(rows), rows)
    assert damaged_segments(tmp_path / "new", layout_of(rows), -rows) == [
        one.name for one in segment_paths(tmp_path / "new", layout_of(rows))
    ]
    path.unlink()
    with pytest.raises(StorageError, match=r"packed-000001\.bin is not a usable"):
        PackedSegments(tmp_path / "new", layout_of(rows))


def test_damaged_segments_are_not_shared(tmp_path: Path) -> None:
    rows = unit_vectors(ITEMS)
    write(tmp_path / "old", rows)
    (tmp_path / "new").mkdir()
    names = [segment_paths(tmp_path / "old", layout_of(rows))[1].name]
    for touched in (None, ()):
        old = Predecessor(tmp_path / "old", ITEMS, touched, names)
        write_segments(tmp_path / "new", layout_of(rows), rows, old)
    for path in segment_paths(tmp_path / "new", layout_of(rows)):
        assert path.samefile(tmp_path / "old" / path.name) == (path.name not in names)
