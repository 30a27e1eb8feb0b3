"""From a folder of images to an index: apart from the index, because a service needs no torch."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from client.institution.images import iterate_pixels
from client.institution.index import Index
from client.institution.index_writer import build_index
from client.institution.pairs import Pair, Skip, read_pairs
from protocol.model.embedder import Embedder
from protocol.params import PRIVATE, Preset
from protocol.plan import Costs


def embed_folder(
    data: Path,
    embedder: Embedder,
    root: Path,
    preset: Preset = PRIVATE,
    progress: Callable[[int], None] = lambda blocks: None,
    goal: str = "bytes",
    costs: Costs | None = None,
) -> tuple[Index, list[Pair], tuple[Skip, ...]]:
    """Embed every image of the folder ``data`` and build the next epoch of the index in ``root``.

    Also returns the pairs that were indexed, in order of position, and what was skipped: an
    image that does not decode costs itself alone.
    """
    folder = read_pairs(data)
    parts, kept, skips = [], list[int](), tuple[Skip, ...]()
    for pixels, some, unread in iterate_pixels(folder, folder.pairs, *embedder.fit):
        parts.append(embedder.pixels(pixels))
        kept += some
        skips += unread
    pairs = [folder.pairs[i] for i in kept]
    embeddings = np.concatenate(parts)
    index = build_index(root, embedder.release_id, embeddings, pairs, preset, progress, goal, costs)
    return index, pairs, folder.skipped + skips
