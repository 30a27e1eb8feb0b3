"""What the institution says of single items: in which forms they may leave at most."""

from collections.abc import Collection
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from client.institution.index import Index
from client.institution.index_writer import IndexWriter
from protocol.errors import UsageError


def restrict(root: Path, names: Collection[str], forms: frozenset[str] | None) -> tuple[int, int]:
    """Let the items ``names`` of the index in ``root`` leave in ``forms`` at most.

    None is all that the policy names. It holds from the new epoch on, also after the images were
    embedded anew. Returns that epoch and how many items changed. Raises :class:`UsageError` for a
    name that is not indexed, :class:`StorageError` as the writer does.
    """
    with IndexWriter(root) as writer, closing(Index(root)) as old:
        places = old.table.positions(names)
        if unknown := sorted(set(names) - set(places)):
            raise UsageError(
                f"{unknown[0]!r} is not indexed ({len(unknown)} of {len(set(names))} names)",
                "Names are those of metadata.jsonl, relative to the folder.",
            )
        items = old.items(list(places.values()))
        put = [replace(item, at_most=forms) for item in items if item.at_most != forms]
        if not put:
            return old.manifest.epoch, 0
        with closing(writer.change((), put)) as new:
            return new.manifest.epoch, len(put)
