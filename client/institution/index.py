"""An institution's index: what its images become once a release has embedded them.

    ROOT/current            the epoch that is served, a number
    ROOT/building.lock      held by the one process that changes the index (index_writer.py)
    ROOT/items-000001.sqlite    position -> file name, caption, rights, by epoch (items.py)
    ROOT/epoch-000001/      manifest.json            release, preset, sizes, checksums (manifest.py)
                            embeddings-000000.faiss  ... the embeddings, exact (store.py)
                            packed-000000.bin        ... what encrypted scoring reads (segments.py)
                            search.faiss             of another factory than Flat (local_search.py)

Every change is a new epoch beside the old one, switched to when it is whole (epochs.py). It writes
the segments and rows that it touches, and shares the others.
"""

import os
import weakref
from functools import cached_property
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from client.institution.database import Database
from client.institution.epochs import (
    SMALL_BYTES,
    current_epoch,
    delete_unread_if_free,
    open_current,
)
from client.institution.items import Item, ItemTable
from client.institution.local_search import read_search
from client.institution.manifest import EMBEDDINGS, FLAT, ITEMS, PACKED, SEARCH, Manifest
from client.institution.packed import REBUILD
from client.institution.segments import PackedSegments, damaged_segments
from client.institution.store import EmbeddingStore, checksum
from protocol.errors import BlindsightError, StorageError


class Index:
    """One epoch of an index, opened read-only.

    ``Index(root)`` opens the current epoch and stays on it; ``is_current`` tells whether a newer
    one is there, to be opened beside it; ``close()`` lets go of this one. An epoch's files stay
    until its last reader has closed it.
    """

    def __init__(self, root: Path) -> None:
        """Open the current epoch in ``root``; raise :class:`StorageError` if it is not whole."""
        try:
            self.folder, manifest = open_current(root)
            self._let_go = weakref.finalize(self, os.close, manifest)
            text = os.pread(manifest, SMALL_BYTES, 0).decode()
            self.manifest = Manifest.from_json(text)
            self.layout = self.manifest.layout
        except (OSError, ValueError, BlindsightError) as error:
            raise StorageError(f"there is no usable index in {root}: {error}", REBUILD) from error
        self._root, self._database = root, Database(root)
        since, epoch = self.manifest.items_since, self.manifest.epoch
        self.table = ItemTable(self._database, since, epoch)
        self.rows = EmbeddingStore(self.folder, self.layout.items, self.layout.dim)
        """The embeddings float32 [items, dim], mapped where they are asked for."""

    @property
    def is_current(self) -> bool:
        """Whether this epoch is still the one to serve: one small file is read.

        False too where that file is gone or damaged: opening the index anew says what is wrong.
        """
        try:
            return current_epoch(self._root) == self.manifest.epoch
        except (OSError, ValueError, BlindsightError):
            return False

    def close(self) -> None:
        """Let go of what is mapped; what a caller still holds of it stays mapped until then.

        The last reader of an epoch that is no longer current deletes it.
        """
        for name in ("_search", "packed"):
            self.__dict__.pop(name, None)
        if self._let_go.alive:
            self._let_go()
            if not self.is_current:
                delete_unread_if_free(self._root)

    @property
    def disk_bytes(self) -> int:
        """What this epoch takes on disk, with all that it shares with others."""
        return self._database.bytes + sum(one.stat().st_size for one in self.folder.iterdir())

    @cached_property
    def _search(self) -> faiss.Index:
        if self.manifest.factory == FLAT:
            return self.rows.searchable()
        return read_search(self.folder / SEARCH, self.manifest.checksums[SEARCH])

    @cached_property
    def packed(self) -> PackedSegments:
        """The packed form, mapped."""
        return PackedSegments(self.folder, self.layout)

    def embeddings(self) -> NDArray[np.float32]:
        """Return the embeddings float32 [items, dim], in memory where they are many."""
        return self.rows[:]

    def embedding(self, position: int) -> NDArray[np.float32]:
        """Return one embedding, float32 [dim]."""
        return np.array(self.rows[position : position + 1][0])

    def search(
        self, questions: NDArray[np.float32], k: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Search in plaintext through FAISS: scores and positions [m, k], best first.

        Of a factory other than Flat both are approximate, and a position may be -1 for none.
        """
        scores, positions = self._search.search(questions, min(k, self.manifest.items))
        return scores, positions

    def items(self, positions: list[int]) -> list[Item]:
        """Return the items at ``positions``, in that order."""
        return self.table.at(positions)

    def damaged(self) -> list[str]:
        """Read everything; return what differs from its checksum, its embeddings or its count."""
        sums, folder = self.manifest.checksums, self.folder
        lost = self.rows.damaged(sums[EMBEDDINGS])
        found = [*lost, *([SEARCH] if SEARCH in sums else [])]
        if SEARCH in found and checksum(folder / SEARCH) == sums[SEARCH]:
            found.remove(SEARCH)
        if not self._items_are_whole():
            found.append(ITEMS)
        if lost:
            return found
        segments = damaged_segments(folder, self.layout, self.rows)
        if not segments and PackedSegments(folder, self.layout).digest != sums[PACKED]:
            segments = [PACKED]
        return found + segments

    def _items_are_whole(self) -> bool:
        try:
            return self.table.is_whole(self.layout.items, self.manifest.checksums[ITEMS])
        except StorageError:
            return False

    def verify(self) -> None:
        """Raise :class:`StorageError` that names all that :meth:`damaged` finds."""
        if damaged := self.damaged():
            some = ", ".join(damaged[:5]) + (f" and {len(damaged) - 5} more" if damaged[5:] else "")
            hint = "Run blindsight index verify --repair."
            if lost_for_good(damaged):
                hint = REBUILD
            raise StorageError(f"{self.folder} is damaged: {some}", hint)


def lost_for_good(damaged: list[str]) -> list[str]:
    """Return those of :meth:`Index.damaged` that cannot be made from the rest."""
    return [name for name in damaged if name == ITEMS or name.startswith(EMBEDDINGS)]
