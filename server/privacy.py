"""Central differential privacy: who sees the model cannot tell whether an institution took part.

Neighbours differ in one institution, whose change is replaced by nothing; how many take part is not
protected. Every change is clipped to ``central-clip`` S as a whole by the institution that makes it
(``protocol.clipping.clip_update``), for under secure aggregation nobody else can; so a dishonest
institution gives up its own protection and nobody else's. All weigh the same. The coordinator adds
the discrete Gaussian to the sum and is itself not protected against: it sees the sum before.
Institutions are not drawn by Poisson sampling, so no amplification is claimed.

With 3 to 10 institutions this costs much: the noise on the mean is z S / n in every coordinate, and
n is what makes it small. It is meant for federations of a hundred and more.
"""

import math

import numpy as np

from protocol.accountant import Spending, epsilon
from protocol.discrete_gaussian import SIGMA, DiscreteGaussian
from protocol.errors import TrainingError
from server.optimisers import Moments

#: Far below one over any number of institutions.
CENTRAL_DELTA = 1e-6


class CentralPrivacy:
    """Noise for the mean change. ``noise`` is z, ``clip`` is S."""

    def __init__(self, noise: float, clip: float) -> None:
        self._noise, self._clip = noise, clip
        self._source = DiscreteGaussian()

    def protect(self, mean: Moments, institutions: int, rounding: float = 0.0) -> Moments:
        """The mean of ``institutions`` clipped changes with noise, on a grid.

        ``rounding`` is how far any value of a change may have moved since it was clipped, as
        quantisation does. Raises TrainingError where the model is too large for so much noise.
        """
        wide = math.sqrt(sum(values.size for values in mean.values()))
        # Two sums that differ by S differ by S / step + sqrt(p) at most once both are rounded.
        room = SIGMA / self._noise - wide
        if room < wide:
            raise TrainingError(
                f"central-noise {self._noise:g} is too much for {wide * wide:,.0f} parameters",
                "train fewer parameters, or with less noise",
            )
        step = (self._clip + rounding * wide) / room
        found: Moments = {}
        for name, values in mean.items():
            whole = np.rint(values * (institutions / step))
            noise = self._source.draw(values.size).reshape(values.shape)
            found[name] = np.asarray((whole + noise) * (step / institutions), np.float64)
        return found

    def epsilon(self, rounds: int, delta: float = CENTRAL_DELTA) -> float:
        """What ``rounds`` rounds cost."""
        return epsilon([Spending(self._noise, 1.0, rounds)], delta) if rounds else 0.0
