"""What the coordinator does with a mean change: one step of an optimiser on the global model."""

from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from protocol.model.update import Arrays

#: float64, by name: a mean change, a moment.
Moments: TypeAlias = dict[str, npt.NDArray[np.float64]]


class Optimiser(Protocol):
    """``step`` takes float32 weights and gives float32 weights, and reckons in float64.

    ``mean_change`` is the average of the institutions' changes (new minus old), which stands
    where minus a gradient would (Reddi et al., arXiv:2003.00295, section 2). ``state`` holds the
    moments by their names, zeros at first or whatever the method begins with; who restores it
    restores the optimiser.
    """

    state: dict[str, Moments]

    def step(self, current: Arrays, mean_change: Moments) -> Arrays:
        """The weights after one more round; replaces ``state``."""
        ...


def filled(like: Arrays, value: float) -> Moments:
    """Moments of the shapes of ``like``, all ``value``."""
    return {name: np.full(values.shape, value) for name, values in like.items()}


def moved(current: Arrays, move: Callable[[str], npt.NDArray[np.float64]]) -> Arrays:
    """Each weight plus ``move(name)``, added in float64 and rounded to float32 once."""
    return {
        # Sums of arrays without dimensions are NumPy scalars; a record takes arrays.
        name: np.asarray(values.astype(np.float64) + move(name), np.float32)
        for name, values in current.items()
    }
