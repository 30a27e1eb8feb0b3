"""The one process that may change an index: it writes a new epoch, then switches to it.

A change that was killed leaves ``building-000002``; the next one goes on with what is packed
there.
"""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from client.institution.epochs import (
    LOCK,
    delete_unread,
    make_current,
    next_epoch,
)
from client.institution.index import Index, checksum
from client.institution.items import Item, ItemTable
from client.institution.local_search import fill_search, read_search, train_search, write_search
from client.institution.manifest import EMBEDDINGS, FLAT, ITEMS, MANIFEST, PACKED, SEARCH, Manifest
from client.institution.packed import REBUILD
from client.institution.pairs import Pair
from client.institution.placement import place
from client.institution.segments import PackedSegments, segment_paths, write_segments
from client.institution.store import write_store
from protocol.errors import DataError, StorageError, UsageError
from protocol.files import open_exclusively, storage_error, write_atomically, writing
from protocol.packing import Layout
from protocol.params import PRIVATE, Preset
from protocol.plan import Costs, best, plans

Progress = Callable[[int], None]


def _silent(blocks: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class _Epoch:
    """What an epoch is to hold; ``base`` is the epoch that it may share segments with."""

    release_id: str
    layout: Layout
    embeddings: NDArray[np.float32]
    write_items: Callable[[ItemTable], None]
    factory: str = FLAT
    search: faiss.Index | None = None
    base: Path | None = None
    damaged: Collection[str] = ()


class IndexWriter:
    """A context manager: while it is open nobody else can change the index in ``root``.

    Readers go on with their epoch. Its methods return the new epoch, opened; each raises
    :class:`StorageError` for a full disk, and leaves the old epoch whatever happens.
    """

    def __init__(self, root: Path) -> None:
        self._root, self._held, self._changed = root, ExitStack(), False

    def __enter__(self) -> "IndexWriter":
        """Raise :class:`StorageError` while another process changes the index."""
        try:
            self._root.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(open_exclusively(self._root / LOCK))
        except OSError as error:
            raise storage_error(self._root, error, "the old epoch is still served") from error
        return self

    def __exit__(self, *_: object) -> None:
        """Delete the epochs that nobody reads any more, and let others change the index."""
        with self._held, writing(self._root):
            if self._changed:
                delete_unread(self._root)

    def build(
        self,
        release_id: str,
        embeddings: NDArray[np.float32],
        items: Sequence[Item],
        preset: Preset = PRIVATE,
        progress: Progress = _silent,
        goal: str = "bytes",
        costs: Costs | None = None,
        factory: str = FLAT,
    ) -> Index:
        """Index ``embeddings`` float32 [n, dim] of n ``items``, and nothing else.

        The chunk width is the best one for ``goal`` at ``costs`` (``protocol.plan``). Raises
        :class:`DataError` for an empty collection.
        """
        if len(items) != len(embeddings) or not len(items):
            raise DataError(
                f"an index needs an embedding for each image, got {len(embeddings)} for "
                f"{len(items)}",
                "Look at the images that were skipped: is any left?",
            )
        layout = best(plans(preset, embeddings.shape[1], len(items), costs or Costs()), goal).layout
        search = None if factory == FLAT else train_search(factory, embeddings)
        new = _Epoch(release_id, layout, embeddings, lambda t: t.create(items), factory, search)
        return self._write(new, progress)

    def change(
        self,
        removed: Collection[str] = (),
        put: Sequence[Item] = (),
        rows: Mapping[str, NDArray[np.float32]] | None = None,
        progress: Progress = _silent,
    ) -> Index:
        """Take out the items named ``removed`` and put in ``put``, by file name.

        ``rows`` has an embedding float32 [dim] for each item of ``put`` that is new or shows
        something else. Items keep their positions, but for a few that fill holes. Raises
        :class:`UsageError` for a name that is not indexed, :class:`DataError` if nothing is left.
        """
        old, rows = Index(self._root), rows or {}
        removed = set(removed) - {item.file_name for item in put}
        try:
            known = old.table.positions([*removed, *(item.file_name for item in put)])
            if unknown := sorted(removed - set(known)):
                raise UsageError(
                    f"{unknown[0]!r} is not indexed ({len(unknown)} of {len(removed)} names)",
                    "Names are those of metadata.jsonl, relative to the folder.",
                )
            new = [item.file_name for item in put if item.file_name not in known]
            if bare := set(new) - set(rows):
                raise UsageError(f"a new item needs its embedding: {min(bare)!r} has none")
            plan = place(old.layout.items, [known[name] for name in removed], len(new))
            if not plan.count:
                raise DataError("an index keeps one item at least", "Delete its folder instead.")
            matrix, before = np.empty((plan.count, old.layout.dim), np.float32), old.embeddings()
            kept = min(plan.count, old.layout.items)
            matrix[:kept] = before[:kept]
            sources = list(plan.moved.values())
            changes = dict(zip(plan.moved, old.items(sources), strict=True))
            at = {source: target for target, source in plan.moved.items()}
            for target, source in plan.moved.items():
                matrix[target] = before[source]
            free = iter(plan.new)
            for item in put:
                name = item.file_name
                position = at.get(known[name], known[name]) if name in known else next(free)
                changes[position] = item
                if name in rows:
                    matrix[position] = rows[name]
            layout = Layout(old.layout.preset, old.layout.dim, old.layout.chunk_width, plan.count)
            search = self._refilled(old, matrix)
            return self._write(
                _Epoch(
                    old.manifest.release_id, layout, matrix,
                    lambda table: table.copy(old.table, changes, plan.count),
                    old.manifest.factory, search, old.folder,
                ),
                progress,
            )  # fmt: skip
        finally:
            old.close()

    def repair(self, progress: Progress = _silent) -> Index:
        """Pack and train again, from the embeddings, what :meth:`Index.damaged` finds.

        Raises :class:`StorageError` if the embeddings or the items themselves are damaged.
        """
        old = Index(self._root)
        try:
            damaged = old.damaged()
            if not damaged:
                return Index(self._root)
            if lost := sorted({EMBEDDINGS, ITEMS} & set(damaged)):
                raise StorageError(f"{' and '.join(lost)} cannot be made from the rest", REBUILD)
            rows, factory = old.embeddings(), old.manifest.factory
            search = None
            if factory != FLAT:
                refill = SEARCH not in damaged
                search = self._refilled(old, rows) if refill else train_search(factory, rows)
            # What a change that was killed left may have been linked from what is damaged.
            self._clear_buildings()
            return self._write(
                _Epoch(
                    old.manifest.release_id, old.layout, rows,
                    lambda table: table.copy(old.table, {}, old.layout.items),
                    factory, search, None if PACKED in damaged else old.folder, damaged,
                ),
                progress,
            )  # fmt: skip
        finally:
            old.close()

    def _refilled(self, old: Index, rows: NDArray[np.float32]) -> faiss.Index | None:
        if old.manifest.factory == FLAT:
            return None
        search = read_search(old.folder / SEARCH, old.manifest.checksums[SEARCH])
        fill_search(search, rows)
        return search

    def _write(self, new: _Epoch, progress: Progress) -> Index:
        epoch = next_epoch(self._root)
        building = self._root / f"building-{epoch:06d}"
        try:
            self._clear_buildings(building)
            self._fill(building, epoch, new, progress)
            make_current(self._root, building, epoch)
            self._changed = True
        except OSError as error:
            shutil.rmtree(building, ignore_errors=True)
            raise storage_error(building, error, "the old epoch is still served") from error
        except Exception:
            # What was killed is resumed; what failed would only fill the disk.
            shutil.rmtree(building, ignore_errors=True)
            raise
        return Index(self._root)

    def _fill(self, building: Path, epoch: int, new: _Epoch, progress: Progress) -> None:
        building.mkdir(exist_ok=True)
        segments = {path.name for path in segment_paths(building, new.layout)}
        for left in building.iterdir():
            if left.name.removeprefix(".").removesuffix(".part") not in segments:
                left.unlink()
        write_store(building / EMBEDDINGS, new.embeddings)
        new.write_items(ItemTable(building / ITEMS))
        if new.search is not None:
            write_search(building / SEARCH, new.search)
        write_segments(building, new.layout, new.embeddings, new.base, progress, new.damaged)
        for left in building.glob(".*"):
            left.unlink()
        names = [EMBEDDINGS, ITEMS, *([SEARCH] if new.search is not None else [])]
        sums = {name: checksum(building / name) for name in names}
        manifest = Manifest(
            release_id=new.release_id,
            epoch=epoch,
            preset=new.layout.preset.name,
            dim=new.layout.dim,
            chunk_width=new.layout.chunk_width,
            items=new.layout.items,
            factory=new.factory,
            checksums={**sums, PACKED: PackedSegments(building, new.layout).digest},
        )
        write_atomically(building / MANIFEST, manifest.to_json())

    def _clear_buildings(self, but: Path | None = None) -> None:
        for left in self._root.glob("building-[0-9]*"):
            if left != but:
                shutil.rmtree(left)


def build_index(
    root: Path,
    release_id: str,
    embeddings: NDArray[np.float32],
    pairs: Sequence[Pair],
    preset: Preset = PRIVATE,
    progress: Progress = _silent,
    goal: str = "bytes",
    costs: Costs | None = None,
) -> Index:
    """Build the next epoch in ``root`` from embeddings of ``pairs``: :meth:`IndexWriter.build`."""
    items = [Item.of(pair) for pair in pairs]
    with IndexWriter(root) as writer:
        return writer.build(release_id, embeddings, items, preset, progress, goal, costs)
