"""The mean of the institutions' changes, weighed by their examples (arXiv:1602.05629)."""

from collections.abc import Sequence

import numpy as np

from server.optimisers import Moments
from server.replies import Update


def mean_change(updates: Sequence[Update]) -> Moments:
    """In float64 and in the order given, so the result does not depend on who was faster.

    The weights are the numbers of examples. As soon as one institution keeps its number to
    itself (it then says 1), all weigh the same, for a mixture of both would silence it.
    """
    hidden = any(update.examples == 1 for update in updates)
    weights = [1 if hidden else update.examples for update in updates]
    total = sum(weights)
    mean = {name: np.zeros(values.shape) for name, values in updates[0].change.items()}
    for update, weight in zip(updates, weights, strict=True):
        for name, values in update.change.items():
            mean[name] += values.astype(np.float64) * (weight / total)
    return mean
