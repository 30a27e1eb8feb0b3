"""From images to embeddings: apart from the index, because a service needs no torch.

An image is looked at before it is decoded: one that changes in between is found by its time the
next time.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.institution.formats.stored import stored_stamp
from client.institution.images import iterate_pixels
from client.institution.items import Item
from client.institution.journal import EmbeddingJournal
from client.institution.pairs import Pair, PairFolder, Skip
from protocol.errors import DataError
from protocol.model.embedder import Embedder


@dataclass(frozen=True)
class Embedded:
    """``rows`` float32 [n, dim] of n ``items``, in order; what was ``skipped`` in between."""

    items: list[Item]
    rows: NDArray[np.float32]
    skipped: tuple[Skip, ...]


def look_at(folder: PairFolder, pairs: Sequence[Pair]) -> Iterator[tuple[Pair, Item | Skip]]:
    """Yield each pair with its item as it lies there now, read but not decoded."""

    def look(pair: Pair) -> Item | Skip:
        try:
            size, changed_ns = stored_stamp(folder.path(pair))
            sha256 = hashlib.sha256(folder.read(pair)).hexdigest()
        except DataError as error:
            return Skip(pair.file_name, error.message)
        except OSError as error:
            return Skip(pair.file_name, f"cannot be read: {error.strerror}")
        return Item.of(pair, sha256, size, changed_ns)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for start in range(0, len(pairs), 1024):
            some = pairs[start : start + 1024]
            yield from zip(some, pool.map(look, some), strict=True)


def embed(
    folder: PairFolder,
    found: Sequence[tuple[Pair, Item | Skip]],
    embedder: Embedder,
    journal: EmbeddingJournal,
    progress: Callable[[int], None] = lambda images: None,
) -> Embedded:
    """Embed what :func:`look_at` found; an image that does not decode costs itself alone.

    What ``journal`` has is not embedded again, and it gets every batch. ``progress`` gets the
    images done so far. Raises what the journal does.
    """
    skips = {pair.file_name: seen for pair, seen in found if isinstance(seen, Skip)}
    items = {pair.file_name: seen for pair, seen in found if isinstance(seen, Item)}
    missing = [
        pair for pair, seen in found if isinstance(seen, Item) and seen.sha256 not in journal
    ]
    done = len(items) - len(missing)
    progress(done)
    for pixels, kept, unread in iterate_pixels(folder, missing, *embedder.fit):
        if len(pixels):
            journal.add([items[missing[i].file_name].sha256 for i in kept], embedder.pixels(pixels))
        skips.update({skip.where: skip for skip in unread})
        done += len(kept) + len(unread)
        progress(done)
    good = [item for name, item in items.items() if name not in skips]
    rows = np.empty((len(good), embedder.dim), np.float32)
    for place, item in enumerate(good):
        rows[place] = journal.row(item.sha256)
    return Embedded(good, rows, tuple(skips.values()))
