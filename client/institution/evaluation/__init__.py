"""How well sentences find their images, and images their sentences, by the field's protocol.

NumPy alone, so that whoever reads results needs no torch. :func:`evaluate` is the whole of it:
both directions with intervals; :func:`measure` is the cheap part that every training round asks.
"""

from client.institution.evaluation.evaluation import (
    Embeds,
    Evaluation,
    by_folds,
    evaluate,
    evaluate_vectors,
    measure,
)
from client.institution.evaluation.institutions import ByInstitution, by_institution
from client.institution.evaluation.intervals import Intervals, RecallIntervals
from client.institution.evaluation.relevance import relevance
from client.institution.evaluation.retrieval import Retrieval, chance, retrieve

__all__ = [
    "ByInstitution",
    "Embeds",
    "Evaluation",
    "Intervals",
    "RecallIntervals",
    "Retrieval",
    "by_folds",
    "by_institution",
    "chance",
    "evaluate",
    "evaluate_vectors",
    "measure",
    "relevance",
    "retrieve",
]
