"""A model's retrieval over one split of an institution's own folder."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from client.institution.evaluation.evaluation import Embeds, evaluate_vectors
from client.institution.evaluation.ranking import Floats
from client.institution.evaluation.relevance import Judgements, relevance
from client.institution.evaluation.retrieval import chance
from client.institution.images import load_pixels
from client.institution.pairs import Pair, PairFolder, read_pairs
from protocol.errors import DataError

_BATCH = 256


class EmbedsPictures(Embeds, Protocol):
    """A model that also says how large it wants its pictures."""

    image_size: int


def evaluate_folder(
    data: Path, embedder: EmbedsPictures, split: str = "test", seed: int = 0
) -> dict[str, Any]:
    """Evaluates ``embedder`` on one split of the folder ``data``, in plain JSON values.

    Keys: ``split``, ``images``, ``skipped`` (lines and images that were unusable), those of
    ``Evaluation``, and ``chance`` in both directions. Images are decoded some at a time.
    Raises DataError for a folder that cannot be read, or a split without a readable image.
    """
    folder = read_pairs(data)
    images, captions = _embed(folder, folder.split(split), embedder)
    if not captions:
        raise DataError(
            f"{data}: no readable image in the split {split!r}",
            f'mark some lines of metadata.jsonl "split": "{split}", or name another split',
        )
    texts, relevant = relevance(captions)
    judgements = Judgements.of(relevant, len(images))
    _, back = judgements.transposed()
    return {
        "split": split,
        "images": len(images),
        "skipped": len(folder.skipped) + len(folder.split(split)) - len(images),
        **asdict(evaluate_vectors(images, embedder.texts(texts), relevant, seed=seed)),
        "chance": {
            "text_to_image": asdict(chance(len(images), np.diff(judgements.starts).tolist())),
            "image_to_text": asdict(chance(len(texts), np.diff(back.starts).tolist())),
        },
    }


def _embed(
    folder: PairFolder, pairs: Sequence[Pair], embedder: EmbedsPictures
) -> tuple[Floats, list[tuple[str, ...]]]:
    """The vectors of all images that can be read, and the captions of each."""
    vectors = [np.empty((0, 0), np.float32)]
    captions: list[tuple[str, ...]] = []
    for start in range(0, len(pairs), _BATCH):
        some = pairs[start : start + _BATCH]
        pixels, kept, _ = load_pixels(folder, some, embedder.image_size)
        if kept:
            vectors.append(embedder.pixels(pixels))
            captions += [some[index].captions for index in kept]
    return np.concatenate(vectors[1:] or vectors), captions
