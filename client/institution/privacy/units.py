"""Whose records they are: the unit that differential privacy protects.

All items of one group (a patient, a product) are one unit; an item without a group is one by
itself, picture and captions together. A unit is drawn or not as a whole, so what is promised for
it is promised for all its records.
"""

from collections.abc import Sequence

import torch

from client.institution.randomness import Stream

_BITS = 62


class Units:
    """The items of a training set by unit. ``groups`` is int64 [n], -1 where there is none."""

    def __init__(self, groups: torch.Tensor) -> None:
        alone = int(groups.max()) + 1 + torch.arange(len(groups)) if len(groups) else groups
        _, unit = torch.unique(torch.where(groups < 0, alone, groups), return_inverse=True)
        order = torch.argsort(unit, stable=True)
        self._items = torch.split(order, torch.bincount(unit).tolist())

    def __len__(self) -> int:
        return len(self._items)

    def draw(self, stream: Stream, sampling: float, buckets: int = 0) -> Sequence[torch.Tensor]:
        """Draws each unit with probability ``sampling``, independently of all others (Poisson).

        Each that is drawn goes into one of ``buckets``, independently too; into one of its own if
        ``buckets`` is 0. Returns the items of each bucket that is not empty, int64.

        The probability is rounded down to a multiple of 2^-63, to what costs no more.
        """
        below = int(sampling * 2 ** (_BITS + 1)) - 2**_BITS
        taken = stream.uniform(len(self), _BITS) < below
        drawn = [self._items[unit] for unit in taken.nonzero()[0].tolist()]
        if not buckets:
            return drawn
        # Which bucket may be a little uneven: only that it does not depend on others matters.
        places = (stream.uniform(len(drawn), _BITS) % buckets).tolist()
        filled: dict[int, list[torch.Tensor]] = {}
        for place, items in zip(places, drawn, strict=True):
            filled.setdefault(place, []).append(items)
        return [torch.cat(filled[place]) for place in sorted(filled)]
