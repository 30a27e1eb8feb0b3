"""How well a sentence finds its images: recall and rank of text-to-image retrieval.

A query is a caption; an image is relevant to it when the caption is one of *its* captions, so a
query may have several relevant images. NumPy alone, so that whoever reads results needs no torch.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class Retrieval:
    """One measurement. Recall at k: the share of queries with a relevant image in the top k.

    ``median_rank`` and ``mean_rank`` are of the best relevant image; 1 is the top.
    """

    queries: int
    gallery: int
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    mean_rank: float


class Embeds(Protocol):
    """What ``measure`` needs of a model: ``protocol.model.embedder.Embedder`` is one."""

    def texts(self, texts: Sequence[str]) -> Floats:
        """Embeds n texts as float32 [n, d]."""
        ...

    def pixels(self, pixels: npt.NDArray[np.uint8]) -> Floats:
        """Embeds pictures, uint8 [n, 3, s, s], as float32 [n, d]."""
        ...


def measure(
    embedder: Embeds, pixels: npt.NDArray[np.uint8], captions: Sequence[Sequence[str]]
) -> Retrieval:
    """Searches a gallery of pictures, uint8 [n, 3, s, s], with every one of its own captions."""
    queries, relevant = relevance(captions)
    return retrieve(embedder.texts(queries), embedder.pixels(pixels), relevant)


def relevance(captions: Sequence[Sequence[str]]) -> tuple[list[str], list[frozenset[int]]]:
    """The distinct captions of a gallery, and for each the images (indices) that it belongs to.

    In order of first appearance; captions that differ only in case or surrounding space are one.
    """
    images: dict[str, set[int]] = {}
    spelt: dict[str, str] = {}
    for image, texts in enumerate(captions):
        for text in texts:
            key = text.strip().casefold()
            spelt.setdefault(key, text)
            images.setdefault(key, set()).add(image)
    return list(spelt.values()), [frozenset(images[key]) for key in spelt]


def retrieve(texts: Floats, images: Floats, relevant: Sequence[Collection[int]]) -> Retrieval:
    """Ranks ``images`` [n, d] for each of ``texts`` [q, d] by inner product.

    ``relevant[i]`` holds the indices of the images that query i should find. Ties go against
    us: an image with the same score counts as ranked before the relevant one. Raises ValueError
    for shapes that do not fit, a query without a relevant image, or values that are not finite.
    """
    if not len(texts) == len(relevant) > 0 or not len(images) or not all(map(len, relevant)):
        raise ValueError(
            f"{len(texts)} queries, {len(relevant)} sets of relevant images, {len(images)} images"
        )
    if not (np.isfinite(texts).all() and np.isfinite(images).all()):
        raise ValueError("embeddings hold values that are not finite")
    ranks = np.concatenate(
        [
            _ranks(texts[start : start + _BLOCK] @ images.T, relevant[start : start + _BLOCK])
            for start in range(0, len(texts), _BLOCK)
        ]
    )
    at_1, at_5, at_10 = (float((ranks <= k).mean()) for k in (1, 5, 10))
    return Retrieval(
        len(texts), len(images), at_1, at_5, at_10, float(np.median(ranks)), float(ranks.mean())
    )


def chance(gallery: int, relevant: Sequence[int]) -> Retrieval:
    """What ranking at random gives, exactly.

    ``relevant[i]`` is how many of the ``gallery`` images are relevant to query i. With m of n
    relevant, the best of them ranks below k with probability C(n-m, k) / C(n, k)
    (hypergeometric) and on average at (n+1) / (m+1). ``median_rank`` is the least rank that at
    least half of all draws, over all queries, reach. Raises ValueError for counts out of range.
    """
    counts, weights = np.unique(np.asarray(relevant, np.int64), return_counts=True)
    if not len(counts) or counts[0] < 1 or counts[-1] > gallery:
        raise ValueError(f"expected 1 to {gallery} relevant images for each query")
    missed = np.stack([_missed(gallery, int(count)) for count in counts])
    reached = 1 - weights @ missed / weights.sum()
    at_1, at_5, at_10 = (float(reached[min(k, gallery)]) for k in (1, 5, 10))
    median = int(np.argmax(reached >= 0.5 - 1e-12))
    mean = float(weights @ ((gallery + 1) / (counts + 1)) / weights.sum())
    return Retrieval(len(relevant), gallery, at_1, at_5, at_10, float(median), mean)


def _ranks(scores: Floats, relevant: Sequence[Collection[int]]) -> npt.NDArray[np.int64]:
    """The rank of the best relevant image in each row of scores [q, n], ties against us."""
    ranks = np.empty(len(scores), np.int64)
    for row, (score, wanted) in enumerate(zip(scores, relevant, strict=True)):
        found = np.fromiter(wanted, np.int64)
        best = score[found].max()
        ranks[row] = 1 + np.count_nonzero(score >= best) - np.count_nonzero(score[found] >= best)
    return ranks


def _missed(gallery: int, count: int) -> npt.NDArray[np.float64]:
    """For k = 0 .. gallery: the probability that k random images hold none of ``count``."""
    drawn = np.arange(gallery)
    steps = np.maximum(gallery - count - drawn, 0) / (gallery - drawn)
    return np.concatenate([[1.0], np.cumprod(steps)])
