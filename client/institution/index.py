"""An institution's index: what its images become once a release has embedded them.

    ROOT/current            the epoch that is served, a number
    ROOT/building.lock      held by the one build that runs
    ROOT/epoch-000001/      manifest.json    release, preset, sizes, checksums (manifest.py)
                            embeddings.faiss the embeddings, exact (store.py)
                            items.sqlite     position -> file name, caption (items.py)
                            packed.bin       what encrypted scoring reads (packed.py)

A build makes a new epoch beside the old one and switches ``current`` over when it is whole. One
that was killed leaves ``building-000002``, and the next one goes on with what is packed there.
"""

import hashlib
import shutil
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from client.institution.items import Item, read_items, write_items
from client.institution.manifest import EMBEDDINGS, FILES, ITEMS, PACKED, Manifest
from client.institution.packed import REBUILD, PackedIndex, part_of, write_packed
from client.institution.pairs import Pair
from client.institution.store import open_store, write_store
from protocol.errors import BlindsightError, DataError, StorageError
from protocol.files import (
    check_file,
    open_exclusively,
    storage_error,
    sync_folder,
    write_atomically,
)
from protocol.packing import Layout
from protocol.params import PRIVATE, Preset
from protocol.plan import Costs, best, plans

_SMALL_BYTES = 1 << 16


class Index:
    """One epoch of an index, opened read-only.

    ``Index(root)`` opens the current epoch and stays on it; ``is_current`` tells whether a newer
    one is there, to be opened beside it; ``close()`` lets go of this one.
    """

    def __init__(self, root: Path) -> None:
        """Open the current epoch in ``root``; raise :class:`StorageError` if it is not whole."""
        try:
            epoch = int(_small_text(root / "current"))
            folder = root / _epoch_name(epoch)
            self.manifest = Manifest.from_json(_small_text(folder / "manifest.json"))
            self.layout = self.manifest.layout
        except (OSError, ValueError, BlindsightError) as error:
            raise StorageError(f"there is no usable index in {root}: {error}", REBUILD) from error
        self._root, self._folder = root, folder

    @property
    def is_current(self) -> bool:
        """Whether this epoch is still the one to serve: one small file is read.

        False too where that file is gone or damaged: opening the index anew says what is wrong.
        """
        try:
            return int(_small_text(self._root / "current")) == self.manifest.epoch
        except (OSError, ValueError, BlindsightError):
            return False

    def close(self) -> None:
        """Let go of what is mapped; what a caller still holds of it stays mapped until then."""
        for name in ("_store", "packed"):
            self.__dict__.pop(name, None)

    @cached_property
    def _store(self) -> faiss.Index:
        return open_store(self._folder / EMBEDDINGS, self.layout.items, self.layout.dim)

    @cached_property
    def packed(self) -> PackedIndex:
        """The packed form, mapped."""
        packed = PackedIndex(self._folder / PACKED)
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
        return read_items(self._folder / ITEMS, positions)

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
        with open_exclusively(root / "building.lock"):
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
        packed = building / PACKED
        for left in building.iterdir():
            # A build that was killed leaves temporary files; what it had packed is kept.
            if left != part_of(packed):
                left.unlink()
        write_store(building / EMBEDDINGS, embeddings)
        write_items(building / ITEMS, pairs)
        write_packed(packed, layout, embeddings, progress)
        manifest = Manifest(
            release_id=release_id,
            epoch=epoch,
            preset=layout.preset.name,
            dim=layout.dim,
            chunk_width=layout.chunk_width,
            items=layout.items,
            checksums={name: _checksum(building / name) for name in FILES},
        )
        write_atomically(building / "manifest.json", manifest.to_json())
        building.rename(root / _epoch_name(epoch))
        sync_folder(root)
        write_atomically(root / "current", str(epoch))
    except Exception:
        shutil.rmtree(building, ignore_errors=True)
        raise


def _small_text(path: Path) -> str:
    check_file(path, _SMALL_BYTES, REBUILD)
    return path.read_text()


def _epoch_name(epoch: int) -> str:
    return f"epoch-{epoch:06d}"


def _checksum(path: Path) -> str:
    if path.name == PACKED:
        return PackedIndex(path).digest
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", REBUILD) from error
