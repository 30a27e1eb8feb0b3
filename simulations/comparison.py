"""Does encryption change what is found? Encrypted search beside FAISS on the same questions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np
from numpy.typing import NDArray

from client.institution.index import Index
from client.searcher.answers import Answers
from client.searcher.searcher import Searcher
from client.searcher.traffic import Traffic

K = 10


@dataclass(frozen=True)
class Comparison:
    """What was measured over all questions.

    ``overlap_at_10``: the mean share of FAISS's ten best that the encrypted search also has
    among its ten best, a share that equal scores can lower but never raise.
    Errors are of scores, encrypted minus exact, over every item of every institution.
    """

    queries: int
    overlap_at_10: float
    max_score_error: float
    rms_score_error: float
    traffic: dict[str, list[Traffic]]

    def median(self, pick: Callable[[Traffic], float]) -> dict[str, float]:
        """Return the median over questions, by institution."""
        return {name: median(map(pick, seen)) for name, seen in self.traffic.items()}


def compare(
    searcher: Searcher,
    indexes: Mapping[str, Index],
    questions: NDArray[np.float32],
    progress: Callable[[int], None],
) -> Comparison:
    """Ask every question float32 [m, dim] encrypted and in plaintext; measure the difference."""
    embeddings = {name: index.embeddings().astype(np.float64) for name, index in indexes.items()}
    overlaps, squares, worst, items = [], 0.0, 0.0, 0
    traffic: dict[str, list[Traffic]] = {name: [] for name in indexes}
    for done, question in enumerate(questions, 1):
        answers = searcher.ask(question)
        if answers.notes:
            raise next(iter(answers.notes.values()))
        for name, scores in answers.scores.items():
            error = scores - embeddings[name] @ question.astype(np.float64)
            worst = max(worst, float(np.abs(error).max()))
            squares, items = squares + float(error @ error), items + len(error)
            traffic[name].append(answers.traffic[name])
        plain = _plaintext_best(indexes, question)
        overlaps.append(_overlap(answers, plain))
        progress(done)
    rms = float(np.sqrt(squares / items))
    return Comparison(len(questions), fmean(overlaps), worst, rms, traffic)


def _plaintext_best(
    indexes: Mapping[str, Index], question: NDArray[np.float32]
) -> set[tuple[str, int]]:
    """The ten best of all institutions by FAISS, in plaintext: (institution, position)."""
    found = [
        (float(score), name, int(position))
        for name, index in indexes.items()
        for scores, positions in [index.search(question[None], K)]
        for score, position in zip(scores[0], positions[0], strict=True)
    ]
    return {(name, position) for _, name, position in sorted(found, reverse=True)[:K]}


def _overlap(answers: Answers, plain: set[tuple[str, int]]) -> float:
    found: Sequence[tuple[str, int, float]] = answers.best(K)
    return len({(name, position) for name, position, _ in found} & plain) / len(plain)
