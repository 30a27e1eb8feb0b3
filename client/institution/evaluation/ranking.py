"""Ranks of relevant items, in galleries whose scores would not fit in memory at once."""

from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from client.institution.evaluation.relevance import Ints, Judgements

Floats = npt.NDArray[np.float32]

_SCORES = 1 << 22  # at once: 16 MiB


@dataclass(frozen=True, slots=True)
class Ranks:
    """Of each of q queries: the rank of its best relevant item, and its average precision.

    ``best`` is int64 [q], 1 at the top; ``average_precision`` is float64 [q], from 0 to 1.
    """

    best: Ints
    average_precision: npt.NDArray[np.float64]

    def of(self, queries: Ints) -> Self:
        """Those of some queries alone."""
        return type(self)(self.best[queries], self.average_precision[queries])


def rank(queries: Floats, gallery: Floats, judgements: Judgements) -> Ranks:
    """Ranks ``gallery`` [n, d] for each of ``queries`` [q, d] by inner product.

    Ties go against us: an item that is not relevant comes before a relevant one of the same
    score. Average precision is the mean, over all relevant items, of the precision at their
    ranks (Manning, Raghavan & Schuetze, Introduction to Information Retrieval, 2008, ch. 8.4).
    Every query has a relevant item. Raises ValueError for shapes that do not fit the judgements,
    and for values or scores that are not finite.
    """
    if queries.shape != (judgements.queries, *gallery.shape[1:]) or gallery.ndim != 2:
        raise ValueError(
            f"expected {judgements.queries} queries and a gallery, vectors of one width, "
            f"got {list(queries.shape)} and {list(gallery.shape)}"
        )
    if not (np.isfinite(queries).all() and np.isfinite(gallery).all()):
        raise ValueError("embeddings hold values that are not finite")
    ahead = _count_ahead(queries, gallery, judgements)
    starts = judgements.starts
    ahead = ahead[np.lexsort((ahead, judgements.query))]
    place = np.arange(1, len(ahead) + 1) - starts[judgements.query]
    ranks = ahead + place
    precision = np.bincount(judgements.query, place / ranks)
    return Ranks(ranks[starts[:-1]], precision / np.diff(starts))


def _count_ahead(queries: Floats, gallery: Floats, judgements: Judgements) -> Ints:
    """For each pair, how many irrelevant items score no worse: int64 [m]."""
    starts, ahead = judgements.starts, np.empty(len(judgements.item), np.int64)
    block = max(1, _SCORES // len(gallery))
    for first in range(0, len(queries), block):
        scores = queries[first : first + block] @ gallery.T
        pairs = slice(starts[first], starts[first + len(scores)])
        row, item = judgements.query[pairs] - first, judgements.item[pairs]
        wanted = scores[row, item]
        if not np.isfinite(wanted).all():
            raise ValueError("scores are not finite: the embeddings are too long")
        scores[row, item] = -np.inf
        scores.sort(axis=1)
        ends = starts[first : first + len(scores) + 1]
        for line, low, high in zip(scores, ends[:-1], ends[1:], strict=True):
            here = wanted[low - ends[0] : high - ends[0]]
            ahead[low:high] = len(gallery) - line.searchsorted(here)
    return ahead
