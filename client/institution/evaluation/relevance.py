"""Which items answer which queries: from captions and groups, or as given."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def relevance(
    captions: Sequence[Sequence[str]], groups: Sequence[str | None] | None = None
) -> tuple[list[str], list[frozenset[int]]]:
    """The distinct captions of a gallery, and for each the images (indices) that it should find.

    In order of first appearance; captions that differ only in case or surrounding space are one.
    A caption should find the images that carry it and, where ``groups`` names one for each image
    (a patient, a product; None for none), every image of the same group.
    Raises ValueError if there is not one group, or None, for each image.
    """
    numbers = units(groups, len(captions)).tolist()
    members: dict[int, set[int]] = {}
    owners: dict[str, set[int]] = {}
    spelt: dict[str, str] = {}
    for image, texts in enumerate(captions):
        members.setdefault(numbers[image], set()).add(image)
        for text in texts:
            key = text.strip().casefold()
            spelt.setdefault(key, text)
            owners.setdefault(key, set()).add(numbers[image])
    # Captions of one large group share one object, or memory would hold the group once for each.
    seen: dict[frozenset[int], frozenset[int]] = {}
    found = (frozenset().union(*(members[unit] for unit in owners[key])) for key in spelt)
    return list(spelt.values()), [seen.setdefault(images, images) for images in found]


def units(groups: Sequence[str | None] | None, images: int) -> Ints:
    """A number for each image, int64 [images]: one for a group, its own for an image without.

    Raises ValueError if there is not one group, or None, for each image.
    """
    names = [None] * images if groups is None else groups
    if len(names) != images:
        raise ValueError(f"expected a group or None for each of {images} images, got {len(names)}")
    numbers: dict[str | int, int] = {}
    keys = (image if name is None else name for image, name in enumerate(names))
    return np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), np.int64, images)


@dataclass(frozen=True, slots=True)
class Judgements:
    """The pairs (query, item) of which the item is relevant to the query, each once.

    ``query`` and ``item`` are int64 [m], ascending by query, below ``queries`` and ``items``.
    """

    queries: int
    items: int
    query: Ints
    item: Ints

    @classmethod
    def of(cls, relevant: Sequence[Collection[int]], items: int) -> Self:
        """``relevant[i]`` holds the items of query i.

        Raises ValueError without a query, for a query without an item, or an item out of range.
        """
        counts = np.fromiter(map(len, relevant), np.int64, len(relevant))
        if not len(counts) or not counts.all():
            raise ValueError(f"expected relevant items for each of {len(counts)} queries")
        item = np.fromiter(chain.from_iterable(relevant), np.int64, counts.sum())
        if item.min() < 0 or item.max() >= items:
            raise ValueError(f"expected relevant items of all queries to be below {items}")
        return cls._of_pairs(len(counts), items, np.repeat(np.arange(len(counts)), counts), item)

    @property
    def starts(self) -> Ints:
        """Where the pairs of each query start, and where the last one's end: [queries + 1]."""
        return np.searchsorted(self.query, np.arange(self.queries + 1))

    def transposed(self) -> tuple[Ints, Self]:
        """The other direction: the items that some query wants, ascending, now ask.

        Returns their indices, and the judgements with them, numbered afresh, as queries.
        """
        asking, query = np.unique(self.item, return_inverse=True)
        return asking, self._of_pairs(len(asking), self.queries, query, self.query)

    def among(self, chosen: Ints) -> tuple[Ints, Self]:
        """The part of the gallery that ``chosen`` (distinct indices) names.

        Returns the queries, ascending, that have something to find there, and the judgements
        with both numbered afresh.
        """
        place = np.full(self.items, -1)
        place[chosen] = np.arange(len(chosen))
        item = place[self.item]
        asking, query = np.unique(self.query[item >= 0], return_inverse=True)
        return asking, self._of_pairs(len(asking), len(chosen), query, item[item >= 0])

    @classmethod
    def _of_pairs(cls, queries: int, items: int, query: Ints, item: Ints) -> Self:
        pairs = np.unique(query * items + item)
        return cls(queries, items, pairs // items, pairs % items)
