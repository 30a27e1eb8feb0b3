"""One direction of retrieval as figures: measured, averaged, or what chance would give."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields
from typing import Self

import numpy as np
import numpy.typing as npt

from client.institution.evaluation.ranking import Floats, Ranks, rank
from client.institution.evaluation.relevance import Judgements


@dataclass(frozen=True, slots=True)
class Retrieval:
    """One measurement. Recall at k: the share of queries with a relevant item in the top k.

    That is the recall of the retrieval papers, known elsewhere as hit rate or success at k.
    ``median_rank`` and ``mean_rank`` are of the best relevant item; 1 is the top.
    ``mean_average_precision`` counts all relevant items of a query, down to the last.
    """

    queries: int
    gallery: int
    recall_at_1: float
    recall_at_5: float
    recall_at_10: float
    median_rank: float
    mean_rank: float
    mean_average_precision: float

    @classmethod
    def of(cls, ranks: Ranks, gallery: int) -> Self:
        """Sums up the ranks of all queries in one gallery."""
        best, precision = ranks.best, ranks.average_precision
        at_1, at_5, at_10 = (float((best <= k).mean()) for k in (1, 5, 10))
        median, mean = float(np.median(best)), float(best.mean())
        return cls(len(best), gallery, at_1, at_5, at_10, median, mean, float(precision.mean()))

    @classmethod
    def mean(cls, parts: "Sequence[Retrieval]") -> Self:
        """The mean over galleries of one size, each weighted by its queries.

        ``queries`` is their sum; ``median_rank`` the mean of the medians, as papers give it.
        """
        weights = [part.queries for part in parts]
        names = [field.name for field in fields(cls)][2:]
        means = (
            np.average([getattr(part, name) for part in parts], weights=weights) for name in names
        )
        return cls(sum(weights), parts[0].gallery, *map(float, means))


def retrieve(texts: Floats, images: Floats, relevant: Sequence[Collection[int]]) -> Retrieval:
    """Ranks ``images`` [n, d] for each of ``texts`` [q, d] by inner product.

    ``relevant[i]`` holds the indices of the images that query i should find. Ties go against
    us: an image with the same score counts as ranked before the relevant one. Raises ValueError
    for shapes that do not fit, a query without a relevant image, or values that are not finite.
    """
    return Retrieval.of(rank(texts, images, Judgements.of(relevant, len(images))), len(images))


def chance(gallery: int, relevant: Sequence[int]) -> Retrieval:
    """What ranking at random gives, exactly.

    ``relevant[i]`` is how many of the ``gallery`` items are relevant to query i. With m of n
    relevant, the best of them ranks below k with probability C(n-m, k) / C(n, k)
    (hypergeometric) and on average at (n+1) / (m+1). ``median_rank`` is the least rank that at
    least half of all draws, over all queries, reach. Raises ValueError for counts out of range.
    """
    counts, weights = np.unique(np.asarray(relevant, np.int64), return_counts=True)
    if not len(counts) or counts[0] < 1 or counts[-1] > gallery:
        raise ValueError(f"expected 1 to {gallery} relevant items for each query")
    missed = np.stack([_missed(gallery, int(count)) for count in counts])
    reached = 1 - weights @ missed / weights.sum()
    at_1, at_5, at_10 = (float(reached[min(k, gallery)]) for k in (1, 5, 10))
    median = int(np.argmax(reached >= 0.5 - 1e-12))
    mean = float(np.average((gallery + 1) / (counts + 1), weights=weights))
    precision = float(np.average(_precision(gallery, counts), weights=weights))
    return Retrieval(len(relevant), gallery, at_1, at_5, at_10, float(median), mean, precision)


def _missed(gallery: int, count: int) -> npt.NDArray[np.float64]:
    """For k = 0 .. gallery: the probability that k random items hold none of ``count``."""
    drawn = np.arange(gallery)
    steps = np.maximum(gallery - count - drawn, 0) / (gallery - drawn)
    return np.concatenate([[1.0], np.cumprod(steps)])


def _precision(gallery: int, counts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The expected average precision of each of ``counts`` relevant items in random order.

    A relevant item at rank k has (k-1)(m-1) / (n-1) relevant ones before it, on average; all
    ranks are as likely (Bestgen, "Exact Expected Average Precision of the Random Baseline for
    System Evaluation", 2015).
    """
    others = (counts - 1) / max(gallery - 1, 1)
    harmonic = np.sum(1 / np.arange(1, gallery + 1))
    return np.asarray(others + (1 - others) * harmonic / gallery)
