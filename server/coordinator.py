"""A whole training run, seen from the coordinator: from a seed to a model.

The coordinator sees the global model and, until aggregation is made secure, each institution's
change of it; never a pair, a caption or an embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass

from flwr.app import ArrayRecord, ConfigRecord, MetricRecord
from flwr.serverapp import Grid

from protocol.errors import TrainingError
from protocol.model.settings import TrainingSettings
from protocol.model.towers import TwoTowers
from protocol.model.update import arrays_of, load_arrays, pack
from server.round import RoundReport
from server.strategy import CheckedFedAvg

OnRound = Callable[[RoundReport], None]


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The trained model, the history, and each institution's validation recall@10 of it."""

    model: TwoTowers
    reports: tuple[RoundReport, ...]
    recalls: dict[str, float]

    @property
    def metrics(self) -> dict[str, float]:
        """For the release's manifest: of the run as a whole, nothing of one institution."""
        found = {"rounds": float(sum(report.counted for report in self.reports))}
        if self.recalls:
            found["val_recall_at_10"] = sum(self.recalls.values()) / len(self.recalls)
        return found


def coordinate(
    grid: Grid, settings: TrainingSettings, on_round: OnRound | None = None
) -> TrainingResult:
    """Trains with whatever institutions ``grid`` reaches; ``on_round`` is told after each round.

    The same settings and the same replies give the same model, to the bit. Raises TrainingError
    when no round could be used, or too many in a row could not.
    """
    model = TwoTowers.initial(settings.towers, settings.seed)
    initial = arrays_of(model)
    strategy = CheckedFedAvg(initial, settings)

    def after_round(number: int, _: ArrayRecord) -> MetricRecord | None:
        if number and on_round is not None:
            on_round(strategy.reports[-1])
        return None

    strategy.start(
        grid,
        pack(initial),
        num_rounds=settings.rounds,
        timeout=settings.deadline_seconds,
        train_config=ConfigRecord({**settings.to_run_config()}),
        evaluate_config=ConfigRecord({**settings.to_run_config()}),
        evaluate_fn=after_round,
    )
    if not any(report.counted for report in strategy.reports):
        raise TrainingError(
            f"none of {settings.rounds} rounds had {settings.quorum} usable replies",
            "see the institutions' own logs for what went wrong there",
        )
    load_arrays(model, strategy.current)
    return TrainingResult(model.eval(), tuple(strategy.reports), strategy.recalls)
