"""A whole training run, seen from the coordinator: from a seed to a model.

The coordinator sees the global model and sums of the institutions' changes; never a pair, a caption
or an embedding. Without ``secure_aggregation`` it sees each institution's change, and with
``standardise`` its mean image feature.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from flwr.serverapp import Grid

from protocol.errors import TrainingError
from protocol.model.settings import TrainingSettings
from protocol.model.statistics import Statistics
from protocol.model.towers import TwoTowers
from protocol.model.update import Arrays, arrays_of, load_arrays
from protocol.roster import Roster
from server.checkpoint import Checkpoints
from server.progress import Progress
from server.round import RoundReport
from server.strategy import Strategy, mean_recall

OnRound = Callable[[RoundReport], None]
_log = logging.getLogger("blindsight.coordinator")


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The trained model, the history, and each institution's validation recall@10 of it.

    ``statistics`` are those that the model standardises by, where the settings ask for it.
    """

    model: TwoTowers
    reports: tuple[RoundReport, ...]
    recalls: dict[str, float]
    statistics: Statistics | None = None

    @property
    def metrics(self) -> dict[str, float]:
        """For the release's manifest: of the run as a whole, nothing of one institution."""
        found = {"rounds": float(sum(report.counted for report in self.reports))}
        recall = mean_recall(self.recalls.values())
        return found if recall is None else found | {"val_recall_at_10": recall}


def coordinate(
    grid: Grid,
    settings: TrainingSettings,
    on_round: OnRound | None = None,
    checkpoints: Path | None = None,
    resume: bool = False,
    model: TwoTowers | None = None,
    roster: Roster | None = None,
) -> TrainingResult:
    """Trains with whatever institutions ``grid`` reaches; ``on_round`` is told after each round.

    ``model`` is the one to begin with, and is trained in place; without it, it follows from the
    seed. ``roster`` says who is an institution, for secure aggregation. Every round is saved in
    the folder ``checkpoints``. With ``resume`` the run goes on after the last round saved there,
    from the beginning if there is none; ``on_round`` is told of the earlier rounds at once.

    The same settings and the same replies give the same model, to the bit, also when the run was
    killed and resumed in between. Raises TrainingError when no round could be used, or too many
    in a row could not; UsageError for a folder that holds another run; StorageError.
    """
    if model is None:
        model = TwoTowers.initial(settings.towers, settings.seed)
    store = None if checkpoints is None else Checkpoints(checkpoints, settings)
    progress = _begin(store, resume, model, settings)
    strategy = Strategy(grid, settings, progress, roster)
    if on_round is not None:
        for report in progress.reports:
            on_round(report)
    if settings.standardise and progress.statistics is None:
        progress.statistics = strategy.standardise(model.image.width)
    while not progress.finished(settings):
        report = strategy.train()
        if store is not None:
            store.save(progress)
        if on_round is not None:
            on_round(report)
    if not any(report.counted for report in progress.reports):
        raise TrainingError(
            f"none of {settings.rounds} rounds had {settings.quorum} usable replies",
            "see the institutions' own logs for what went wrong there",
        )
    arrays, recalls = _choose(strategy, progress, settings)
    load_arrays(model, arrays)
    if progress.statistics is not None:
        found = progress.statistics
        model.standardise(torch.from_numpy(found.mean), torch.from_numpy(found.std))
    return TrainingResult(model.eval(), tuple(progress.reports), recalls, progress.statistics)


def _begin(
    store: Checkpoints | None, resume: bool, model: TwoTowers, settings: TrainingSettings
) -> Progress:
    initial = arrays_of(model)
    if store is not None and resume:
        found = store.load(initial, model.image.width)
        if found is not None:
            return found
        _log.warning("there is no checkpoint to resume: training from the beginning")
    elif store is not None:
        store.require_vacant()
    return Progress.begin(initial, settings)


def _choose(
    strategy: Strategy, progress: Progress, settings: TrainingSettings
) -> tuple[Arrays, dict[str, float]]:
    """The last model, or with patience the best, and its recalls at all institutions.

    Nobody has measured the last model yet. A run that patience ended does not ask for it.
    """
    best = progress.best
    if best is None or progress.number == settings.rounds:
        recalls = strategy.evaluate(progress.current)
        last = mean_recall(recalls.values())
        if best is None or (last is not None and last > best.recall):
            return progress.current, recalls
    return best.arrays, strategy.evaluate(best.arrays)
