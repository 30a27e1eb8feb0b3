"""The mean of the institutions' changes, weighed by their examples (arXiv:1602.05629)."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from protocol.errors import MalformedMessage
from protocol.model.update import Arrays
from server.optimisers import Moments
from server.replies import Update

#: Of a small weight the step of a sum is not small beside it.
_ROUNDING = 1e-3


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


def mean_of_sum(
    summed: npt.NDArray[np.float64], weight: float, like: Arrays, clipping_range: float
) -> Moments:
    """The same mean from the masked sum of weight times change; ``weight`` is the sum of weights.

    ``summed`` is float64 [p], in the order of the sorted names of ``like``. Raises
    MalformedMessage when it is not what institutions that clip can have sent.
    """
    if not weight > 0:
        raise MalformedMessage("the sum of weights is not above 0: an institution broke the rules")
    mean = summed / weight
    if mean.size and not np.abs(mean).max() <= clipping_range * (1 + _ROUNDING):
        raise MalformedMessage(
            f"the masked mean is beyond the clipping range of {clipping_range:g}: an institution "
            "broke the rules, or its masks are not those that it shared"
        )
    found: Moments = {}
    start = 0
    for name in sorted(like):
        end = start + like[name].size
        found[name] = mean[start:end].reshape(like[name].shape)
        start = end
    return {name: found[name] for name in like}
