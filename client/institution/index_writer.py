"""The one process that may change an index: it writes a new epoch, then switches to it.

A change that was killed leaves ``building-000002``; the next one goes on with what is packed
there.
"""

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.institution.database import Database
from client.institution.epochs import LOCK, delete_unread, make_current, next_epoch
from client.institution.index import Index, lost_for_good
from client.institution.items import Item, ItemTable
from client.institution.local_search import fill_search, read_search, train_search
from client.institution.manifest import FLAT, ITEMS, PACKED, SEARCH
from client.institution.new_epoch import ChangedRows, NewEpoch
from client.institution.packed import REBUILD
from client.institution.pairs import Pair
from client.institution.placement import place
from client.institution.predecessor import Predecessor
from client.institution.segments import segment_paths
from client.institution.store import Rows
from protocol.errors import DataError, StorageError, UsageError
from protocol.files import open_exclusively, storage_error, writing
from protocol.packing import Layout
from protocol.params import PRIVATE, Preset
from protocol.plan import Costs, best, plans

Progress = Callable[[int], None]


def _silent(blocks: int) -> None:
    """Tell nobody."""


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
        precision: str = "float32",
    ) -> Index:
        """Index ``embeddings`` float32 [n, dim] of n ``items``, and nothing else.

        The chunk width is the best one for ``goal`` at ``costs`` (``protocol.plan``);
        ``precision`` is that of what made the embeddings. Raises
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

        def write_items(epoch: int) -> str:
            return ItemTable(Database(self._root), epoch, epoch).create(items)

        new = NewEpoch(release_id, layout, embeddings, write_items, precision, factory, search)
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
            sources = list(plan.moved.values())
            changes = dict(zip(plan.moved, old.items(sources), strict=True))
            at = {source: target for target, source in plan.moved.items()}
            given = {target: old.embedding(source) for target, source in plan.moved.items()}
            free = iter(plan.new)
            for item in put:
                name = item.file_name
                position = at.get(known[name], known[name]) if name in known else next(free)
                changes[position] = item
                if name in rows:
                    given[position] = _row(rows[name], old.layout.dim)
            layout = Layout(old.layout.preset, old.layout.dim, old.layout.chunk_width, plan.count)
            matrix = ChangedRows(old.rows, (plan.count, old.layout.dim), given)
            base = Predecessor(old.folder, old.layout.items, given)
            return self._follow(old, layout, matrix, changes, base, progress)
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
            if lost := lost_for_good(damaged):
                raise StorageError(f"{' and '.join(lost)} cannot be made from the rest", REBUILD)
            if PACKED in damaged:
                damaged += [path.name for path in segment_paths(old.folder, old.layout)]
            # What a change that was killed left may have been linked from what is damaged.
            self._clear_buildings()
            base = Predecessor(old.folder, old.layout.items, (), damaged)
            return self._follow(old, old.layout, old.rows, {}, base, progress)
        finally:
            old.close()

    def _follow(
        self,
        old: Index,
        layout: Layout,
        rows: Rows,
        changes: Mapping[int, Item],
        base: Predecessor,
        progress: Progress,
    ) -> Index:
        """Write the epoch after ``old``, with ``changes`` to its items by position."""
        manifest, search = old.manifest, None
        if manifest.factory != FLAT and SEARCH in base.damaged:
            search = train_search(manifest.factory, rows[:])
        elif manifest.factory != FLAT:
            search = read_search(old.folder / SEARCH, manifest.checksums[SEARCH])
            fill_search(search, rows[:])

        def write_items(epoch: int) -> str:
            return old.table.follow(epoch, changes, layout.items, manifest.checksums[ITEMS])

        new = NewEpoch(
            manifest.release_id, layout, rows, write_items, manifest.precision,
            manifest.factory, search, base, manifest.items_since,
        )  # fmt: skip
        return self._write(new, progress)

    def _write(self, new: NewEpoch, progress: Progress) -> Index:
        epoch = next_epoch(self._root)
        building = self._root / f"building-{epoch:06d}"
        try:
            self._clear_buildings(building)
            new.write_into(building, epoch, progress)
            make_current(self._root, building, epoch)
            self._changed = True
        except OSError as error:
            self._leave_nothing(building, epoch, new)
            raise storage_error(building, error, "the old epoch is still served") from error
        except Exception:
            self._leave_nothing(building, epoch, new)
            raise
        return Index(self._root)

    def _leave_nothing(self, building: Path, epoch: int, new: NewEpoch) -> None:
        """What was killed is resumed; what failed would only fill the disk."""
        shutil.rmtree(building, ignore_errors=True)
        if not new.items_since:
            with suppress(StorageError, OSError):
                Database(self._root).drop(epoch)

    def _clear_buildings(self, but: Path | None = None) -> None:
        for left in self._root.glob("building-[0-9]*"):
            if left != but:
                shutil.rmtree(left)


def _row(row: NDArray[np.float32], dim: int) -> NDArray[np.float32]:
    if row.shape != (dim,):
        raise UsageError(f"an embedding is float32 {(dim,)}, got {row.shape}")
    return row


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
