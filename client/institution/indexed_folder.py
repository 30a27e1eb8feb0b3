"""A folder of images and the index of it: kept in step with the release that embeds."""

from collections.abc import Callable, Collection, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from client.institution.embedding import Embedded, embed, look_at
from client.institution.formats.stored import stored_stamp
from client.institution.index import Index
from client.institution.index_writer import IndexWriter
from client.institution.items import Item
from client.institution.journal import EmbeddingJournal, delete_journal
from client.institution.manifest import FLAT
from client.institution.pairs import Pair, PairFolder, Skip, read_pairs
from protocol.errors import ReleaseMismatch, StorageError, UsageError
from protocol.model.embedder import Embedder
from protocol.params import PRIVATE, Preset
from protocol.plan import Costs

Progress = Callable[[int], None]


def _silent(images: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class Report:
    """What a change came to: the epoch that is served now, and how it differs."""

    index: Index
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    skipped: tuple[Skip, ...] = ()


class IndexedFolder:
    """The images of the folder ``data``, indexed in ``root``.

    Every verb locks the index against other writers, keeps the embeddings that it made if it is
    killed, and raises :class:`StorageError` for a full disk: the old epoch is then still served.
    """

    def __init__(self, data: Path, root: Path) -> None:
        self._data, self._root = data, root

    def build(
        self,
        embedder: Embedder,
        preset: Preset = PRIVATE,
        goal: str = "bytes",
        costs: Costs | None = None,
        factory: str = FLAT,
        progress: Progress = _silent,
    ) -> Report:
        """Embed and index every image, in the folder's order, whatever was indexed before.

        What ``blindsight index rights`` said of them still holds, if the index before can be read.
        """
        folder = read_pairs(self._data)
        with IndexWriter(self._root) as writer:
            limits = self._limits()
            embedded = self._embed(folder, list(look_at(folder, folder.pairs)), embedder, progress)
            items = [replace(item, at_most=limits.get(item.file_name)) for item in embedded.items]
            index = writer.build(
                embedder.release_id, embedded.rows, items, preset,
                goal=goal, costs=costs, factory=factory, precision=embedder.precision,
            )  # fmt: skip
            delete_journal(self._root)
        names = tuple(item.file_name for item in embedded.items)
        return Report(index, added=names, skipped=folder.skipped + embedded.skipped)

    def add(
        self, embedder: Embedder, names: Collection[str] = (), progress: Progress = _silent
    ) -> Report:
        """Index what is in the folder and not in the index; of it only ``names``, if given.

        Raises :class:`UsageError` for a name that the folder has not, or if the index was embedded
        in another precision, :class:`ReleaseMismatch` if it is of another release.
        """
        folder = read_pairs(self._data)
        described = {pair.file_name for pair in folder.pairs}
        if unknown := sorted(set(names) - described):
            raise UsageError(
                f"{unknown[0]!r} is not described in {self._data}",
                "Name images as metadata.jsonl does.",
            )
        with IndexWriter(self._root) as writer, closing(Index(self._root)) as old:
            if old.manifest.release_id != embedder.release_id:
                raise ReleaseMismatch(
                    f"the index is of release {old.manifest.release_id}, this is "
                    f"{embedder.release_id}",
                    "Run blindsight index update: it embeds everything with the new release.",
                )
            if old.manifest.precision != embedder.precision:
                raise UsageError(
                    f"the index was embedded in {old.manifest.precision}, this is "
                    f"{embedder.precision}",
                    "Ask for the same, or run blindsight index update: it embeds everything anew.",
                )
            asked = [pair for pair in folder.pairs if not names or pair.file_name in names]
            known = old.table.positions(pair.file_name for pair in asked)
            new = [pair for pair in asked if pair.file_name not in known]
            embedded = self._embed(folder, list(look_at(folder, new)), embedder, progress)
            index = self._change(writer, (), embedded.items, embedded)
        added = tuple(item.file_name for item in embedded.items)
        return Report(index, added=added, skipped=embedded.skipped)

    def update(self, embedder: Embedder, progress: Progress = _silent) -> Report:
        """Add what is new, remove what is gone, embed anew what shows something else.

        An image whose size and time of change are as they were is not read. Under another
        release, or in another precision, everything is embedded, and served when all of it is.
        """
        with closing(Index(self._root)) as old:
            preset, factory = old.layout.preset, old.manifest.factory
            made_by = old.manifest.release_id, old.manifest.precision
        if made_by != (embedder.release_id, embedder.precision):
            return self.build(embedder, preset, factory=factory, progress=progress)
        folder = read_pairs(self._data)
        with IndexWriter(self._root) as writer, closing(Index(self._root)) as old:
            known = {item.file_name: item for item in old.table.all()}
            doubtful = [pair for pair in folder.pairs if not _untouched(folder, pair, known)]
            found = list(look_at(folder, doubtful))
            looked = {pair.file_name: seen for pair, seen in found if isinstance(seen, Item)}
            same = {name for name, item in looked.items() if _shows_the_same(item, known)}
            others = [(pair, seen) for pair, seen in found if pair.file_name not in same]
            embedded = self._embed(folder, others, embedder, progress)
            skips = folder.skipped + embedded.skipped
            unread = {skip.where for skip in embedded.skipped}
            shown = {
                item.file_name: replace(item, at_most=known[item.file_name].at_most)
                if item.file_name in known
                else item
                for item in embedded.items
            }
            kept = [
                replace(
                    looked.get(name, known[name]),
                    caption=pair.captions[0],
                    release=pair.release,
                    at_most=known[name].at_most,
                )
                for pair in folder.pairs
                if (name := pair.file_name) in known and name not in shown and name not in unread
            ]
            here = {*shown, *(item.file_name for item in kept)}
            removed = tuple(name for name in known if name not in here)
            told = [item for item in kept if _told(item) != _told(known[item.file_name])]
            if not (shown or removed or told):
                delete_journal(self._root)
                return Report(Index(self._root), skipped=skips)
            stamped = [item for item in kept if item != known[item.file_name]]
            index = self._change(writer, removed, [*shown.values(), *stamped], embedded)
        added = tuple(name for name in shown if name not in known)
        changed = [*(name for name in shown if name in known), *(item.file_name for item in told)]
        return Report(index, added, removed, tuple(changed), skips)

    def _limits(self) -> dict[str, frozenset[str]]:
        try:
            with closing(Index(self._root)) as old:
                return old.table.limits()
        except StorageError:
            return {}

    def _embed(
        self,
        folder: PairFolder,
        found: Sequence[tuple[Pair, Item | Skip]],
        embedder: Embedder,
        progress: Progress,
    ) -> Embedded:
        journal = EmbeddingJournal(
            self._root, embedder.release_id, embedder.precision, embedder.dim
        )
        with closing(journal):
            return embed(folder, found, embedder, journal, progress)

    def _change(
        self, writer: IndexWriter, removed: Sequence[str], put: Sequence[Item], embedded: Embedded
    ) -> Index:
        rows = {
            item.file_name: row for item, row in zip(embedded.items, embedded.rows, strict=True)
        }
        index = writer.change(removed, put, rows) if removed or put else Index(self._root)
        delete_journal(self._root)
        return index


def _told(item: Item) -> tuple[str, frozenset[str] | None]:
    return item.caption, item.release


def _untouched(folder: PairFolder, pair: Pair, known: dict[str, Item]) -> bool:
    item = known.get(pair.file_name)
    if item is None or not item.sha256:
        return False
    try:
        return stored_stamp(folder.path(pair)) == (item.bytes, item.changed_ns)
    except OSError:
        return False


def _shows_the_same(item: Item, known: dict[str, Item]) -> bool:
    return item.file_name in known and known[item.file_name].sha256 == item.sha256
