"""What several institutions answered to one question, brought together."""

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from client.searcher.traffic import Traffic
from protocol.errors import BlindsightError
from protocol.wire import IndexDescription


@dataclass(frozen=True)
class Answers:
    """Every score float64 [items] of every institution that answered, by name."""

    described: dict[str, IndexDescription]
    scores: dict[str, NDArray[np.float64]]
    notes: dict[str, BlindsightError]
    traffic: dict[str, Traffic]
    _firsts: dict[tuple[str, int], NDArray[np.intp]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """By name and k: a search looks again whenever one more has answered."""

    def best(self, k: int) -> list[tuple[str, int, float]]:
        """Return the k best (institution, position, score).

        Scores of different institutions compare because one release embedded everything. An
        institution that lies about its own can come first with whatever it likes, as it could by
        indexing other pictures; it cannot learn or change what the others answer.
        """
        candidates = [
            (name, int(position), float(values[position]))
            for name, values in self.scores.items()
            for position in self._first(name, k)
        ]
        return sorted(candidates, key=lambda one: (-one[2], one[0], one[1]))[:k]

    def _first(self, name: str, k: int) -> NDArray[np.intp]:
        if (name, k) not in self._firsts:
            self._firsts[name, k] = _first(self.scores[name], k)
        return self._firsts[name, k]


def _first(scores: NDArray[np.float64], k: int) -> NDArray[np.intp]:
    """Positions of the k best, in order; of equal ones the first."""
    if len(scores) > 4 * k:
        bound = np.partition(scores, len(scores) - k)[len(scores) - k]
        candidates = np.flatnonzero(scores >= bound)
        return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]
    return np.argsort(-scores, kind="stable")[:k]
