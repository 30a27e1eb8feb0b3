"""How far a run has come: everything that the next round depends on, and the history."""

import secrets
from dataclasses import dataclass, field
from typing import Self

from protocol.model.settings import TrainingSettings
from protocol.model.statistics import Statistics
from protocol.model.update import Arrays
from server.optimisers import Optimiser, optimiser_of
from server.round import RoundReport


@dataclass(frozen=True, slots=True)
class Best:
    """The best model so far, by the mean validation recall@10 of its institutions."""

    recall: float
    arrays: Arrays


@dataclass(slots=True)
class Progress:
    """A run after ``number`` rounds: the global model and all that goes with it.

    ``run`` names the run to the institutions, also after it was resumed: 32 hexadecimal digits,
    random, for two runs of the same settings are two. ``waited`` counts the rounds since
    ``best``, which is kept where the settings have patience.
    """

    run: str
    current: Arrays
    optimiser: Optimiser
    reports: list[RoundReport] = field(default_factory=list)
    statistics: Statistics | None = None
    best: Best | None = None
    waited: int = 0

    @classmethod
    def begin(cls, initial: Arrays, settings: TrainingSettings) -> Self:
        """Before the first round."""
        return cls(secrets.token_hex(16), initial, optimiser_of(initial, settings))

    @property
    def number(self) -> int:
        """How many rounds are over, counted or not."""
        return len(self.reports)

    def finished(self, settings: TrainingSettings) -> bool:
        """Whether no round follows: all are over, or patience is."""
        return self.number >= settings.rounds or 0 < settings.patience <= self.waited

    def judge(self, recall: float | None) -> None:
        """Compares ``current``, of which this is the mean recall, with the best so far.

        Institutions measure the model that they receive, so it is the replies of a round that
        judge the model before it. A round in which nobody measured says nothing.
        """
        if recall is None:
            return
        if self.best is None or recall > self.best.recall:
            self.best, self.waited = Best(recall, self.current), 0
        else:
            self.waited += 1
