"""An institution's index: what its images become once a release has embedded them.

    ROOT/current            the epoch that is served, a number
    ROOT/building.lock      held by the one build that runs
    ROOT/epoch-000001/      manifest.json    release, preset, sizes, checksums
                            embeddings.faiss the embeddings, exact (FAISS IndexFlatIP)
                            items.sqlite     position -> file name, caption
                            packed.bin       what encrypted scoring reads (packed.py)

A build makes a new epoch beside the old one and switches ``current`` over when it is whole. One
that was killed leaves ``building-000002``, and the next one goes on with what is packed there.
"""

import hashlib
import json
import shutil
import sqlite3
import struct
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from client.institution.packed import REBUILD, PackedIndex, alone, part_of, write_packed
from client.institution.pairs import Pair
from protocol.errors import DataError, StorageError
from protocol.files import (
    check_file,
    replace_atomically,
    storage_error,
    sync_folder,
    write_atomically,
)
from protocol.packing import Layout
from protocol.params import PRIVATE, Preset, preset_by_name
from protocol.plan import Costs, best, plans

_ROWS = 4096
_MANIFEST_BYTES = 1 << 16
_FILES = {"embeddings.faiss", "items.sqlite", "packed.bin"}


@dataclass(frozen=True)
class Item:
    """One indexed image: its name in the institution's folder, and its first caption."""

    file_name: str
    caption: str


@dataclass(frozen=True)
class Manifest:
    """What an epoch holds; ``checksums`` maps file names to SHA-256 in hexadecimal.

    That of the packed form covers its header and digests, which cover the rest.
    """

    release_id: str
    epoch: int
    preset: str
    dim: int
    chunk_width: int
    items: int
    checksums: dict[str, str]


class Index:
    """One epoch of an index, opened read-only."""

    def __init__(self, root: Path) -> None:
        """Open the current epoch in ``root``; raise :class:`StorageError` if it is not whole."""
        try:
            epoch = int(_small_text(root / "current"))
            folder = root / _epoch_name(epoch)
            self.manifest = Manifest(**json.loads(_small_text(folder / "manifest.json")))
            if (
                not isinstance(self.manifest.checksums, dict)
                or set(self.manifest.checksums) != _FILES
            ):
                raise ValueError(f"its manifest has checksums of {', '.join(sorted(_FILES))}")
            self.layout = Layout(
                preset_by_name(self.manifest.preset),
                self.manifest.dim,
                self.manifest.chunk_width,
                self.manifest.items,
            )
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise StorageError(f"there is no usable index in {root}: {error}", REBUILD) from error
        self._folder = folder

    @cached_property
    def _store(self) -> faiss.Index:
        path = self._folder / "embeddings.faiss"
        head = _store_head(self.layout.items, self.layout.dim)
        expected = len(head) + 4 * self.layout.items * self.layout.dim
        try:
            with path.open("rb") as file:
                found, size = file.read(len(head)), path.stat().st_size
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}", REBUILD) from error
        # FAISS crashes on some files that are not its own.
        if found != head or size != expected:
            raise StorageError(
                f"{path} is not FAISS's file of {self.layout.items} embeddings of width "
                f"{self.layout.dim}: expected {expected} bytes, got {size}",
                REBUILD,
            )
        # Mapped: a service of a million items has no gigabyte of embeddings in its own memory.
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)

    @cached_property
    def packed(self) -> PackedIndex:
        """The packed form, mapped."""
        packed = PackedIndex(self._folder / "packed.bin")
        if packed.layout != self.layout:
            raise StorageError(f"{packed.path} is of another layout than its manifest", REBUILD)
        return packed

    def embeddings(self) -> NDArray[np.float32]:
        """Return the embeddings that FAISS holds, float32 [items, dim]."""
        return np.asarray(self._store.reconstruct_n(0, self.manifest.items), np.float32)

    def embedding(self, position: int) -> NDArray[np.float32]:
        """Return one embedding, float32 [dim]."""
        return np.asarray(self._store.reconstruct(position), np.float32)

    def search(
        self, questions: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search in plaintext through FAISS: scores and positions [m, k], best first."""
        scores, positions = self._store.search(questions, min(k, self.manifest.items))
        return scores, positions

    def items(self, positions: list[int]) -> list[Item]:
        """Return the items at ``positions``, in that order."""
        with sqlite3.connect(f"file:{self._folder / 'items.sqlite'}?mode=ro", uri=True) as table:
            query = "SELECT file_name, caption FROM items WHERE position = ?"
            rows = [table.execute(query, (position,)).fetchone() for position in positions]
        table.close()
        return [Item(*row) for row in rows]

    def verify(self) -> None:
        """Read every file against its checksum; raise :class:`StorageError` if one differs."""
        for name, expected in self.manifest.checksums.items():
            if _checksum(self._folder / name) != expected:
                raise StorageError(f"{self._folder / name} is damaged", REBUILD)
        self.packed.verify()


def build_index(
    root: Path,
    release_id: str,
    embeddings: NDArray[np.float32],
    pairs: list[Pair],
    preset: Preset = PRIVATE,
    progress: Callable[[int], None] = lambda blocks: None,
    goal: str = "bytes",
    costs: Costs | None = None,
) -> Index:
    """Build the next epoch in ``root`` from ``embeddings`` float32 [n, dim] of n ``pairs``.

    The chunk width is the best one for ``goal`` at ``costs`` (``protocol.plan``). A crash leaves
    the old epoch, and what was packed for the next build of the same embeddings. Raises
    :class:`DataError` for an empty collection, :class:`StorageError` for a full disk, or while
    another build runs.
    """
    if len(pairs) != len(embeddings) or not len(pairs):
        raise DataError(
            f"an index needs an embedding for each image, got {len(embeddings)} for {len(pairs)}",
            "Look at the images that were skipped: is any left?",
        )
    layout = best(plans(preset, embeddings.shape[1], len(pairs), costs or Costs()), goal).layout
    try:
        root.mkdir(parents=True, exist_ok=True)
        with alone(root / "building.lock"):
            _build(root, release_id, embeddings, pairs, layout, progress)
    except OSError as error:
        raise storage_error(root, error, "the old epoch is still served") from error
    return Index(root)


def _build(
    root: Path,
    release_id: str,
    embeddings: NDArray[np.float32],
    pairs: list[Pair],
    layout: Layout,
    progress: Callable[[int], None],
) -> None:
    epoch = 1 + max((int(one.name[6:]) for one in root.glob("epoch-[0-9]*")), default=0)
    building = root / f"building-{epoch:06d}"
    try:
        building.mkdir(exist_ok=True)
        packed = building / "packed.bin"
        for left in building.iterdir():
            # A build that was killed leaves temporary files; what it had packed is kept.
            if left != part_of(packed):
                left.unlink()
        _write_store(building / "embeddings.faiss", embeddings)
        _write_items(building / "items.sqlite", pairs)
        write_packed(packed, layout, embeddings, progress)
        checksums = {name: _checksum(building / name) for name in sorted(_FILES)}
        manifest = Manifest(
            release_id,
            epoch,
            layout.preset.name,
            layout.dim,
            layout.chunk_width,
            layout.items,
            checksums,
        )
        write_atomically(building / "manifest.json", json.dumps(asdict(manifest), indent=2))
        building.rename(root / _epoch_name(epoch))
        sync_folder(root)
        write_atomically(root / "current", str(epoch))
    except Exception:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _small_text(path: Path) -> str:
    check_file(path, _MANIFEST_BYTES, REBUILD)
    return path.read_text()


def _epoch_name(epoch: int) -> str:
    return f"epoch-{epoch:06d}"


def _write_store(path: Path, embeddings: NDArray[np.float32]) -> None:
    """Write what ``faiss.write_index`` writes, but without a copy of all embeddings in memory."""
    with replace_atomically(path) as file:
        file.write(_store_head(*embeddings.shape))
        for start in range(0, len(embeddings), _ROWS):
            file.write(np.ascontiguousarray(embeddings[start : start + _ROWS], "<f4").data)


def _store_head(items: int, dim: int) -> bytes:
    """Return how FAISS begins the file of a flat index: an empty one differs in two numbers."""
    head = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dim)))
    struct.pack_into("<q", head, 8, items)
    struct.pack_into("<Q", head, len(head) - 8, items * dim)
    return bytes(head)


def _write_items(path: Path, pairs: list[Pair]) -> None:
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


def _checksum(path: Path) -> str:
    if path.name == "packed.bin":
        return PackedIndex(path).digest
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", REBUILD) from error
