"""One other engine that answers the same question: what a document costs it, and how exactly."""

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from protocol.errors import BlindsightError

_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Peer:
    """What was measured of one engine.

    ``microseconds`` of server time for each document, None where it was not measured; ``sample``
    says on how much it was measured, with how many ``threads``; ``max_error`` is of the
    sample's decrypted scores.
    """

    name: str
    microseconds: float | None
    sample: str
    threads: int | None = None
    max_error: float | None = None


def checked(
    name: str,
    microseconds: float,
    sample: str,
    threads: int,
    scores: NDArray[np.float64],
    vectors: NDArray[np.float32],
    question: NDArray[np.float32],
) -> Peer:
    """Return a peer whose ``scores`` float64 [m] are those of ``vectors`` float32 [m, dim].

    Raises :class:`BlindsightError` if they are not: the time of a wrong answer means nothing.
    """
    exact = vectors.astype(np.float64) @ question.astype(np.float64)
    error = float(np.abs(scores - exact).max())
    if not error < _TOLERANCE:
        raise BlindsightError(
            f"{name} answers wrongly: its scores are off by {error:.1e}, expected {_TOLERANCE:g}",
            "Leave the peers out with --no-peers, and report this.",
        )
    return Peer(name, microseconds, sample, threads, error)


def spread(seconds: float, batch: int, items: int) -> float:
    """Return microseconds a document, where ``seconds`` pay for up to ``batch`` documents."""
    return 1e6 * seconds * ceil(items / batch) / items
