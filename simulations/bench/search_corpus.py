"""What a whole search is measured on: captioned scenes at several institutions, and their indexes.

Drawing takes longer than all else, so a few hundred scenes are drawn and each stands for many
items: as a file of its own name, with an embedding of its own a little beside the scene's.
"""

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from client.institution.images import load_pixels
from client.institution.index import Index
from client.institution.index_writer import build_index
from client.institution.pairs import Pair, read_pairs
from protocol.model.embedder import Embedder
from protocol.params import preset_by_name
from protocol.terminal import progress
from simulations.federation import LocalFederation
from simulations.scenes import write_scenes

_SEED = 0
_BESIDE = 0.05
"""How far an item lies from its scene, in lengths of an embedding."""


@dataclass(frozen=True)
class SearchCorpus:
    """Indexes by institution, and ``sentences`` to ask."""

    indexes: dict[str, Index]
    sentences: list[str]


def settle(
    federation: LocalFederation,
    embedder: Embedder,
    institutions: int,
    items: int,
    drawings: int,
    sentences: int,
    preset: str,
) -> SearchCorpus:
    """Draw scenes and index ``items`` of them at each institution, below the federation's root.

    The same every time. Raises UsageError for numbers that cannot work, StorageError.
    """
    generator = np.random.default_rng(_SEED)
    with progress("drawing scenes", drawings) as show:
        write_scenes(federation.root / "scenes", drawings, institutions, _SEED, show)
    folder = read_pairs(federation.root / "scenes")
    pixels, *_ = load_pixels(folder, folder.pairs, *embedder.fit)
    vectors, indexes = embedder.pixels(pixels), {}
    with progress("indexing", institutions) as show:
        for done, site in enumerate(folder.sites, 1):
            own = [at for at, pair in enumerate(folder.pairs) if pair.site == site]
            chosen = np.resize(own, items)
            home = federation.institution(site)
            (home / "data").mkdir(parents=True)
            pairs = []
            for number, at in enumerate(chosen):
                pair = Pair(f"{number:06}.png", folder.pairs[at].captions, "test")
                os.link(folder.path(folder.pairs[at]), home / "data" / pair.file_name)
                pairs.append(pair)
            rows = _beside(vectors[chosen], generator)
            release, params = embedder.release_id, preset_by_name(preset)
            indexes[site] = build_index(home / "index", release, rows, pairs, params)
            show(done)
    captions = sorted({caption for pair in folder.pairs for caption in pair.captions})
    asked = [str(one) for one in generator.choice(captions, sentences)]
    return SearchCorpus(indexes, asked)


def _beside(vectors: NDArray[np.float32], generator: np.random.Generator) -> NDArray[np.float32]:
    moves = generator.standard_normal(vectors.shape, np.float32)
    rows = vectors + _BESIDE / np.sqrt(vectors.shape[1], dtype=np.float32) * moves
    unit: NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit
