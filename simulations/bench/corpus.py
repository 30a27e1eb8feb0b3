"""What is searched: random unit vectors, indexed as an institution's embeddings are."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from client.institution.index import Index
from client.institution.index_writer import build_index
from client.institution.pairs import Pair
from protocol.params import Preset

RELEASE = "0" * 16
"""Of no model: the vectors are drawn, not embedded."""

_SEED = 0
_RUN = 4096


@dataclass(frozen=True, eq=False)
class Corpus:
    """``vectors`` float32 [items, dim] and ``questions`` float32 [m, dim], all of norm 1."""

    vectors: NDArray[np.float32]
    questions: NDArray[np.float32]

    @classmethod
    def draw(cls, items: int, dim: int, questions: int) -> "Corpus":
        """Draw the same vectors every time: they protect nothing."""
        generator = np.random.default_rng(_SEED)
        return cls(_unit(generator, items, dim), _unit(generator, questions, dim))

    def index(
        self, root: Path, preset: Preset, progress: Callable[[int], None], goal: str = "bytes"
    ) -> Index:
        """Build an index in ``root``; ``progress`` gets the blocks packed so far."""
        # A split that is given is not computed from the name.
        pairs = [Pair(f"{i}.png", ("",), "test") for i in range(len(self.vectors))]
        return build_index(root, RELEASE, self.vectors, pairs, preset, progress, goal)

    def exact(self, question: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return the scores of one question in double precision, float64 [items]."""
        wide = question.astype(np.float64)
        return np.concatenate([run.astype(np.float64) @ wide for run in _runs(self.vectors)])


def _unit(generator: np.random.Generator, count: int, dim: int) -> NDArray[np.float32]:
    rows = generator.standard_normal((count, dim), np.float32)
    for run in _runs(rows):
        run /= np.linalg.norm(run, axis=1, keepdims=True)
    return rows


def _runs(rows: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """Yield views of a few rows: what is computed of them all at once takes their memory again."""
    return (rows[at : at + _RUN] for at in range(0, len(rows), _RUN))
