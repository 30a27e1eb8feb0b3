"""Where items lie after others came and went: most of them where they were."""

from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """``count`` items afterwards: ``new`` positions, and where those at the end ``moved`` to.

    ``moved`` maps the new position to the old one; what is in neither stays.
    """

    count: int
    new: tuple[int, ...]
    moved: dict[int, int]


def place(count: int, removed: Collection[int], added: int) -> Placement:
    """Place ``added`` items among ``count`` of which the positions ``removed`` became free.

    New items fill the holes, the rest of them come at the end; holes that remain take the last
    items, so that positions are 0 to count - 1 again and few blocks change.
    """
    holes = sorted(set(removed))
    filled, left = holes[:added], set(holes[added:])
    new = (*filled, *range(count, count + added - len(filled)))
    after = count + added - len(holes)
    if not left:
        return Placement(after, new, {})
    last = [position for position in range(after, count) if position not in left]
    return Placement(after, new, dict(zip(sorted(left), last, strict=False)))
