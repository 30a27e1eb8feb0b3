"""How far a recall may be off for the images that happened to be in the gallery: bootstrap."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from client.institution.evaluation.relevance import Ints

Doubles = npt.NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 1000
LEVEL = 0.95
_CUTS = (1, 5, 10)
_DRAWS = 1 << 20  # at once: 8 MiB


@dataclass(frozen=True, slots=True)
class RecallIntervals:
    """Confidence intervals (low, high) of one direction's recall."""

    recall_at_1: Interval
    recall_at_5: Interval
    recall_at_10: Interval


@dataclass(frozen=True, slots=True)
class Intervals:
    """Confidence intervals of both directions, and how they were drawn: ``units`` were resampled
    ``resamples`` times from NumPy's default generator, started with ``seed``.
    """

    text_to_image: RecallIntervals
    image_to_text: RecallIntervals
    level: float
    resamples: int
    units: int
    seed: int


def tally(best: Ints, query: Ints, unit: Ints, units: int) -> Doubles:
    """Of each unit: its queries, and those of them with rank 1, to 5 and to 10: [units, 4].

    ``best`` [q] are ranks; the pairs ``query`` [m] and ``unit`` [m] say whose each query is. One
    that is several units' counts as equal parts, so that all tallies sum to the queries.
    """
    shares = 1 / np.bincount(query, minlength=len(best))
    hits = np.stack([np.ones(len(best), bool), *(best <= k for k in _CUTS)])
    return np.stack([np.bincount(unit, one[query], units) for one in hits * shares], axis=1)


def bootstrap(text_to_image: Doubles, image_to_text: Doubles, seed: int) -> Intervals:
    """Percentile intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13)
    from the tallies of both directions, each [units, 4] as ``tally`` gives them.

    The unit is an image with all its captions (or a group of images), not a caption: the captions
    of one image succeed or fail together, so that drawing them one by one would take five
    correlated answers for five independent ones, and the intervals would come out too narrow by
    up to the square root of five. The gallery and so every rank stays as it is: nothing is ranked
    again, and the intervals speak of other queries to this gallery, not of other galleries.
    Both directions share the draws. A unit without a query is never drawn.
    """
    tallies = np.concatenate([text_to_image, image_to_text], axis=1)
    tallies = tallies[(text_to_image[:, 0] > 0) & (image_to_text[:, 0] > 0)]
    units, generator = len(tallies), np.random.default_rng(seed)
    block = max(1, _DRAWS // units)
    drawn = np.concatenate(
        [
            _draw(min(block, RESAMPLES - start), units, generator) @ tallies
            for start in range(0, RESAMPLES, block)
        ]
    )
    tails = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    both = []
    for sums in (drawn[:, :4], drawn[:, 4:]):
        low, high = np.quantile(sums[:, 1:] / sums[:, :1], tails, axis=0).tolist()
        both.append(RecallIntervals(*zip(low, high, strict=True)))
    return Intervals(both[0], both[1], LEVEL, RESAMPLES, units, seed)


def _draw(resamples: int, units: int, generator: np.random.Generator) -> Doubles:
    """How often each unit is drawn in each resample: [resamples, units], rows sum to ``units``."""
    drawn = generator.integers(units, size=(resamples, units))
    drawn += np.arange(resamples)[:, None] * units
    counts = np.bincount(drawn.ravel(), minlength=resamples * units)
    return counts.reshape(resamples, units).astype(np.float64)
