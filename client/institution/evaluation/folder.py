"""A model's retrieval over one split of an institution's own folder."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from client.institution.evaluation.evaluation import Embeds, by_folds, evaluate_vectors
from client.institution.evaluation.ranking import Floats
from client.institution.evaluation.relevance import Judgements, relevance
from client.institution.evaluation.retrieval import chance
from client.institution.images import iterate_pixels
from client.institution.pairs import Pair, PairFolder, read_pairs
from protocol.errors import DataError

_FOLD = 1000


class EmbedsPictures(Embeds, Protocol):
    """A model that also says how it wants its pictures: side, crop and resampling."""

    @property
    def fit(self) -> tuple[int, float | None, str]:
        """As ``load_pixels`` takes them."""
        ...


def evaluate_folder(
    data: Path,
    embedder: EmbedsPictures,
    split: str = "test",
    group_key: str = "group",
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Evaluates ``embedder`` on one split of the folder ``data``, in plain JSON values.

    Keys: ``split``, ``images``, ``skipped`` (lines and images that were unusable), those of
    ``Evaluation``, ``chance`` in both directions, and ``folds_of_1000`` where there are as many
    images (else None). Images are decoded some at a time; ``progress`` is told how many.
    Raises DataError for a folder that cannot be read, or a split without a readable image.
    """
    folder = read_pairs(data, group_key)
    images, captions, groups = _embed(folder, folder.split(split), embedder, progress)
    if not captions:
        raise DataError(
            f"{data}: no readable image in the split {split!r}",
            f'mark some lines of metadata.jsonl "split": "{split}", or name another split',
        )
    texts, relevant = relevance(captions, groups)
    vectors = embedder.texts(texts)
    judgements = Judgements.of(relevant, len(images))
    _, back = judgements.transposed()
    return {
        "split": split,
        "images": len(images),
        "skipped": len(folder.skipped) + len(folder.split(split)) - len(images),
        **asdict(evaluate_vectors(images, vectors, relevant, groups, seed)),
        "folds_of_1000": asdict(by_folds(images, vectors, relevant, _FOLD, groups, seed))
        if len(images) >= _FOLD
        else None,
        "chance": {
            "text_to_image": asdict(chance(len(images), np.diff(judgements.starts).tolist())),
            "image_to_text": asdict(chance(len(texts), np.diff(back.starts).tolist())),
        },
    }


def _embed(
    folder: PairFolder,
    pairs: Sequence[Pair],
    embedder: EmbedsPictures,
    progress: Callable[[int], None],
) -> tuple[Floats, list[tuple[str, ...]], list[str | None]]:
    """The vectors of all images that can be read, and the captions and group of each."""
    vectors = [np.empty((0, 0), np.float32)]
    read: list[Pair] = []
    for pixels, kept, _ in iterate_pixels(folder, pairs, *embedder.fit):
        if kept:
            vectors.append(embedder.pixels(pixels))
            read += [pairs[index] for index in kept]
            progress(kept[-1] + 1)
    whole = np.concatenate(vectors[1:] or vectors)
    return whole, [pair.captions for pair in read], [pair.group for pair in read]
