"""What noise costs: the epsilon of a history of noisy sums, by ``dp-accounting``.

Renyi differential privacy (Mironov, arXiv:1702.07476) of the Poisson-sampled Gaussian mechanism
(Mironov, Talwar and Zhang, arXiv:1908.10530). **Orders are integers on purpose.** There its bound
is a sum of E[(p_j / p_0)^j] = exp(j (j-1) / 2 z^2), and for the discrete Gaussian and whole shifts
that expectation has the very same value (the sum over a shifted lattice is the sum over the
lattice); the theorem that one direction bounds the other needs only x -> shift - x, which keeps
the lattice. So what is computed holds for ``protocol.discrete_gaussian`` as it is, with no
allowance for rounding. A tighter accountant would have to be proved for it first.

The neighbouring relation is zero-out (``REPLACE_SPECIAL``): one unit's records are replaced by
nothing, and how many units there are is the same in both worlds and not protected.
"""

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from protocol.errors import MalformedMessage

ORDERS = (*range(2, 64), *range(64, 128, 4), *range(128, 256, 16), 256, 384, 512, 1024)
LEAST_NOISE, MOST_NOISE = 0.05, 1000.0
MOST_STEPS = 10_000_000
# The library's float64 may lose this much of a divergence, and takes a negative one for nothing.
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True)
class Spending:
    """``steps`` noisy sums, each over units drawn with probability ``sampling`` independently.

    ``noise`` is the standard deviation in units of how far one unit can move the sum.
    Raises MalformedMessage for a value out of range.
    """

    noise: float
    sampling: float
    steps: int

    def __post_init__(self) -> None:
        if not (_is_number(self.noise) and LEAST_NOISE <= self.noise <= MOST_NOISE):
            raise _wrong("noise", f"{LEAST_NOISE:g} to {MOST_NOISE:g}", self.noise)
        if not (_is_number(self.sampling) and 0 < self.sampling <= 1):
            raise _wrong("sampling", "above 0, at most 1", self.sampling)
        if type(self.steps) is not int or not 0 < self.steps <= MOST_STEPS:
            raise _wrong("steps", f"1 to {MOST_STEPS:,}", self.steps)


def epsilon(spendings: Iterable[Spending], delta: float) -> float:
    """The epsilon at ``delta`` of all of them together; 0 for none, infinite where it is huge.

    Raises MalformedMessage unless 0 < delta < 1.
    """
    if not (_is_number(delta) and 0 < delta < 1):
        raise _wrong("delta", "above 0, below 1", delta)
    totals: Counter[tuple[float, float]] = Counter()
    for one in spendings:
        totals[one.noise, one.sampling] += one.steps
    if not totals:
        return 0.0
    curve = np.zeros(len(ORDERS))
    for key, steps in totals.items():
        curve += steps * np.array(_one_step(*key))
    return _epsilon_of(tuple(curve.tolist()), delta)


def noise_for(target: float, delta: float, sampling: float, steps: int) -> float:
    """The least noise, to three digits, with which ``steps`` cost no more than ``target``.

    Raises MalformedMessage if even the most noise costs more.
    """
    low, high = LEAST_NOISE, MOST_NOISE
    if epsilon([Spending(high, sampling, steps)], delta) > target:
        raise _wrong("epsilon", "one that some noise can keep", target)
    while high / low > 1.001:
        middle = math.sqrt(low * high)
        if epsilon([Spending(middle, sampling, steps)], delta) > target:
            low = middle
        else:
            high = middle
    return high


@lru_cache(maxsize=256)
def _one_step(noise: float, sampling: float) -> tuple[float, ...]:
    """The Renyi divergence of one step at each of ORDERS."""
    # Imported late: settings need this module's limits, and the library takes a second.
    from dp_accounting import GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(ORDERS, NeighboringRelation.REPLACE_SPECIAL)
    accountant.compose(PoissonSampledDpEvent(sampling, GaussianDpEvent(noise)))
    return tuple(max(0.0, float(one)) + _ROUNDING for one in accountant.rdp)


def _epsilon_of(curve: tuple[float, ...], delta: float) -> float:
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    found, _ = compute_epsilon(ORDERS, curve, delta)
    return float(found)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _wrong(name: str, expected: str, got: object) -> MalformedMessage:
    return MalformedMessage(f"privacy {name}: expected {expected}, got {got!r:.40}")
