"""How far one unit may move a sum: vectors clipped in norm, all their parts jointly.

Flower's own clipping passes over numbers without dimensions (CLIP's temperature is one), divides by
a norm of zero and fails on integers. Here a 0-d array counts like any other, a vector of norm zero
stays what it is, and integers are refused: what travels is float, and a counter among it would
leave unprotected.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

# What rounding to float32 may add to a norm, and more.
_SHRINK = 1 - 2.0**-20


def on_grid(values: NDArray[Any], bound: float, limit: float) -> NDArray[np.float64]:
    """Clips a vector [n] to the norm ``bound``, as whole numbers of norm at most ``limit``.

    ``bound`` becomes ``limit`` on the grid, at most 2^26. What lies between two numbers goes to
    the one nearer to zero, so that the norm never grows; that it does not pass ``limit`` is checked
    in exact arithmetic: sums of integers below 2^53 are exact in float64. Raises ValueError for
    values that are not finite.
    """
    wide = values.astype(np.float64)
    norm = math.sqrt(wide @ wide)
    if not math.isfinite(norm):
        raise ValueError("expected finite values of a finite norm")
    found: NDArray[np.float64] = np.trunc(wide * (limit / max(norm, bound)))
    while found @ found > limit * limit:
        found = np.trunc(found * _SHRINK)  # each but zero comes nearer to zero
    return found


def clip_update(
    update: Mapping[str, NDArray[np.float32]], bound: float
) -> dict[str, NDArray[np.float32]]:
    """An institution's whole update with a joint norm of at most ``bound``; a new one.

    For central differential privacy (``server.privacy``): under secure aggregation nobody else
    can clip it. Raises ValueError for anything but finite floats.
    """
    for name, values in update.items():
        if values.dtype.kind != "f" or not np.isfinite(values).all():
            raise ValueError(f"array {name}: expected finite floats, got {values.dtype}")
    norm = math.sqrt(sum(float(np.sum(v.astype(np.float64) ** 2)) for v in update.values()))
    if norm <= bound * _SHRINK:
        return {name: values.copy() for name, values in update.items()}
    factor = bound * _SHRINK / norm
    return {name: np.asarray(v * v.dtype.type(factor)) for name, v in update.items()}
