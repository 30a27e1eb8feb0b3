"""The coordinator's optimisers, one a file, chosen by ``TrainingSettings.optimiser``."""

from collections.abc import Callable
from dataclasses import replace

from protocol.model.settings import TrainingSettings
from protocol.model.update import Arrays
from server.optimisers.fedadam import FedAdam
from server.optimisers.fedavg import FedAvg
from server.optimisers.fedavgm import FedAvgM
from server.optimisers.fedyogi import FedYogi
from server.optimisers.optimiser import Moments, Optimiser

__all__ = ["Moments", "Optimiser", "optimiser_of"]

_OPTIMISERS: dict[str, Callable[[Arrays, TrainingSettings], Optimiser]] = {
    "fedavg": FedAvg,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
}


def optimiser_of(initial: Arrays, settings: TrainingSettings) -> Optimiser:
    """The optimiser of ``settings`` for weights of the shapes of ``initial``, at its beginning."""
    rate = settings.server_learning_rate or _suited_rate(settings)
    return _OPTIMISERS[settings.optimiser](initial, replace(settings, server_learning_rate=rate))


def _suited_rate(settings: TrainingSettings) -> float:
    """Momentum sums 1 / (1 - beta) changes; Adam's and Yogi's steps are as long as the rate."""
    rates = {"fedavg": 1.0, "fedavgm": 1 - settings.server_momentum}
    return rates.get(settings.optimiser, 0.01)
