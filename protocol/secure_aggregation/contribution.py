"""What an institution puts into a sum, as whole numbers that cannot overflow, and back again.

A value becomes the nearest multiple of a step, in two's complement. The range is cut so that n
participants at its ends stay inside a word: for updates 32 bits, with the step that the clipping
range and n leave; for totals 64 bits, with a step of 2^-20, in which counts are exact.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from protocol.secure_aggregation.masks import Masked
from protocol.secure_aggregation.session import MAX_PARTICIPANTS, Session

Floats = npt.NDArray[np.float64]
TOTAL_STEP = 2.0**-20
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Contribution:
    """``update``: float32 [p], weighed by ``weight``; ``totals``: float64 [k], as they are."""

    update: npt.NDArray[np.float32]
    totals: Floats
    weight: int = 1


@dataclass(frozen=True, slots=True)
class Sum:
    """``update``: float64 [p], the sum of weight / max_weight * update; ``totals``: float64 [k]."""

    update: Floats
    totals: Floats


def highest(bits: int, participants: int) -> int:
    """The largest number of steps of one participant. Raises ValueError beyond 1,000 of them."""
    if not 1 <= participants <= MAX_PARTICIPANTS:
        raise ValueError(f"expected 1 to {MAX_PARTICIPANTS} participants, got {participants}")
    return int((2 ** (bits - 1) - 1) // participants)


def update_step(session: Session, participants: int) -> float:
    """What a value of the weighted update is rounded to: the largest error is half of it."""
    return session.clipping_range / highest(32, participants)


def quantise(given: Contribution, session: Session, participants: int) -> tuple[Masked, int]:
    """Words, not yet masked, and how many values lay beyond the range and were cut to it.

    Rounding is to nearest, so that a run repeats to the bit. Raises ValueError for a weight that
    is not 1 to ``max_weight`` and for values that are not finite.
    """
    if not 1 <= given.weight <= session.max_weight:
        raise ValueError(f"weight: expected 1 to {session.max_weight}, got {given.weight}")
    most, bound = highest(32, participants), session.clipping_range
    scale = given.weight / session.max_weight / bound * most
    words = np.empty(given.update.size, np.uint32)
    clipped = 0
    for begin in range(0, words.size, _CHUNK):
        part = given.update[begin : begin + _CHUNK].astype(np.float64)
        inside = np.clip(part, -bound, bound)
        clipped += int(np.count_nonzero(inside != part))
        if np.isnan(part).any():
            raise ValueError("update: expected finite values")
        words[begin : begin + _CHUNK].view(np.int32)[...] = np.rint(inside * scale)
    most = highest(64, participants)
    if not np.isfinite(given.totals).all():
        raise ValueError("totals: expected finite values")
    # A float cannot tell the largest of 63 bits from one too many: stay below both.
    bound = most * (1 - 2.0**-50)
    steps = given.totals / TOTAL_STEP
    inside = np.clip(steps, -bound, bound)
    clipped += int(np.count_nonzero(inside != steps))
    return Masked(words, np.rint(inside).astype(np.int64).view(np.uint64)), clipped


def dequantise(summed: Masked, session: Session, participants: int) -> Sum:
    """The sum that the words of ``participants``, as many as quantised for, stand for."""
    step = update_step(session, participants)
    return Sum(
        np.multiply(summed.update.view(np.int32), step, dtype=np.float64),
        np.multiply(summed.totals.view(np.int64), TOTAL_STEP, dtype=np.float64),
    )
