"""What an epoch is to hold, and how it is written into a folder that has no name yet."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from client.institution.local_search import write_search
from client.institution.manifest import EMBEDDINGS, FLAT, ITEMS, MANIFEST, PACKED, SEARCH, Manifest
from client.institution.predecessor import Predecessor
from client.institution.segments import PackedSegments, segment_paths, write_segments
from client.institution.store import Rows, checksum, write_store
from protocol.files import write_atomically
from protocol.packing import Layout


@dataclass(frozen=True)
class NewEpoch:
    """What an epoch is to hold; ``old`` is the epoch that it may share segments with.

    ``write_items`` gets the new epoch's number and returns what its items hash to; their table
    is that of the build ``items_since``, or 0 for its own.
    """

    release_id: str
    layout: Layout
    embeddings: Rows
    write_items: Callable[[int], str]
    precision: str
    factory: str = FLAT
    search: faiss.Index | None = None
    old: Predecessor | None = None
    items_since: int = 0

    def write_into(self, building: Path, epoch: int, progress: Callable[[int], None]) -> None:
        """Write all files of epoch number ``epoch``; segments that a killed change left are used.

        ``progress`` gets the blocks packed so far. Raises OSError, :class:`StorageError`.
        """
        building.mkdir(exist_ok=True)
        segments = {path.name for path in segment_paths(building, self.layout)}
        for left in building.iterdir():
            if left.name.removeprefix(".").removesuffix(".part") not in segments:
                left.unlink()
        sums = {EMBEDDINGS: write_store(building, self.embeddings, self.old)}
        sums[ITEMS] = self.write_items(epoch)
        if self.search is not None:
            write_search(building / SEARCH, self.search)
            sums[SEARCH] = checksum(building / SEARCH)
        write_segments(building, self.layout, self.embeddings, self.old, progress)
        for left in building.glob(".*"):
            left.unlink()
        manifest = Manifest(
            release_id=self.release_id,
            epoch=epoch,
            preset=self.layout.preset.name,
            dim=self.layout.dim,
            chunk_width=self.layout.chunk_width,
            items=self.layout.items,
            items_since=self.items_since or epoch,
            precision=self.precision,
            factory=self.factory,
            checksums={**sums, PACKED: PackedSegments(building, self.layout).digest},
        )
        write_atomically(building / MANIFEST, manifest.to_json())


@dataclass(frozen=True)
class ChangedRows:
    """Embeddings float32 [n, dim] that are those of ``before``, but for some positions."""

    before: Rows
    shape: tuple[int, int]
    rows: Mapping[int, NDArray[np.float32]]

    def __getitem__(self, some: slice) -> NDArray[np.float32]:
        start, stop, _ = some.indices(self.shape[0])
        found = np.empty((stop - start, self.shape[1]), np.float32)
        kept = max(start, min(stop, self.before.shape[0]))
        found[: kept - start] = self.before[start:kept]
        # Of a segment all its positions are looked up, of a whole index the few that changed.
        for position in set(range(start, stop)) & self.rows.keys():
            found[position - start] = self.rows[position]
        return found
