"""An institution's index: what its images become once a release has embedded them.

    ROOT/current            the epoch that is served, a number
    ROOT/epoch-000001/      manifest.json    release, preset, sizes, checksums
                            embeddings.faiss the embeddings, exact (FAISS IndexFlatIP)
                            items.sqlite     position -> file name, caption
                            packed.bin       what encrypted scoring reads (packed.py)

A build makes a new epoch beside the old one and switches ``current`` over when it is whole.
"""

import hashlib
import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from client.institution.packed import REBUILD, PackedIndex, write_packed
from client.institution.pairs import Pair
from protocol.errors import DataError, StorageError
from protocol.files import storage_error, sync_folder, write_atomically
from protocol.packing import Layout
from protocol.params import PRIVATE, Preset, preset_by_name
from protocol.plan import Costs, best, plans


@dataclass(frozen=True)
class Item:
    """One indexed image: its name in the institution's folder, and its first caption."""

    file_name: str
    caption: str


@dataclass(frozen=True)
class Manifest:
    """What an epoch holds; ``checksums`` maps file names to SHA-256 in hexadecimal."""

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
            epoch = int((root / "current").read_text())
            folder = root / _epoch_name(epoch)
            self.manifest = Manifest(**json.loads((folder / "manifest.json").read_text()))
            self.layout = Layout(
                preset_by_name(self.manifest.preset),
                self.manifest.dim,
                self.manifest.chunk_width,
                self.manifest.items,
            )
        except (OSError, ValueError, TypeError) as error:
            raise StorageError(f"there is no usable index in {root}: {error}", REBUILD) from error
        self._folder = folder

    @cached_property
    def _store(self) -> faiss.Index:
        # Mapped: a service of a million items has no gigabyte of embeddings in its own memory.
        return faiss.read_index(str(self._folder / "embeddings.faiss"), faiss.IO_FLAG_MMAP_IFC)

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
            if _sha256(self._folder / name) != expected:
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
) -> Index:
    """Build the next epoch in ``root`` from ``embeddings`` float32 [n, dim] of n ``pairs``.

    The chunk width is the best one for ``goal`` (``protocol.plan``). A crash leaves the old epoch.
    Raises :class:`DataError` for an empty collection, :class:`StorageError` for a full disk.
    """
    if len(pairs) != len(embeddings) or not len(pairs):
        raise DataError(
            f"an index needs an embedding for each image, got {len(embeddings)} for {len(pairs)}",
            "Look at the images that were skipped: is any left?",
        )
    layout = best(plans(preset, embeddings.shape[1], len(pairs), Costs()), goal).layout
    epoch = 1 + max((int(one.name[6:]) for one in root.glob("epoch-[0-9]*")), default=0)
    folder, building = root / _epoch_name(epoch), root / f"building-{epoch:06d}"
    try:
        # What a build that was killed has packed is kept (write_packed says when).
        building.mkdir(parents=True, exist_ok=True)
        store = faiss.IndexFlatIP(layout.dim)
        store.add(np.ascontiguousarray(embeddings))
        faiss.write_index(store, str(building / "embeddings.faiss"))
        _write_items(building / "items.sqlite", pairs)
        write_packed(building / "packed.bin", layout, embeddings, progress)
        names = ("embeddings.faiss", "items.sqlite")
        checksums = {name: _sha256(building / name) for name in names}
        manifest = Manifest(
            release_id, epoch, preset.name, layout.dim, layout.chunk_width, layout.items, checksums
        )
        write_atomically(building / "manifest.json", json.dumps(asdict(manifest), indent=2))
        building.rename(folder)
        sync_folder(root)
        write_atomically(root / "current", str(epoch))
    except Exception as error:
        shutil.rmtree(building, ignore_errors=True)
        if isinstance(error, OSError):
            raise storage_error(folder, error) from error
        if isinstance(error, (RuntimeError, sqlite3.Error)):  # how FAISS and SQLite say it
            raise StorageError(
                f"{folder} cannot be written: {str(error)[:200]}",
                "Is the disk full? Free some space or choose another place, then try again.",
            ) from error
        raise
    return Index(root)


def _epoch_name(epoch: int) -> str:
    return f"epoch-{epoch:06d}"


def _write_items(path: Path, pairs: list[Pair]) -> None:
    path.unlink(missing_ok=True)
    table = sqlite3.connect(path)
    with table:
        table.execute(
            "CREATE TABLE items (position INTEGER PRIMARY KEY, file_name TEXT, caption TEXT)"
        )
        rows = ((i, pair.file_name, pair.captions[0]) for i, pair in enumerate(pairs))
        table.executemany("INSERT INTO items VALUES (?, ?, ?)", rows)
    table.close()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
