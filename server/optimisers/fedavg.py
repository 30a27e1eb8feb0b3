"""FedAvg (McMahan et al., arXiv:1602.05629): the weights move by the mean change itself."""

from protocol.model.settings import TrainingSettings
from protocol.model.update import Arrays
from server.optimisers.optimiser import Moments, moved


class FedAvg:
    """Weights plus server_learning_rate times the mean change; at rate 1, plain averaging."""

    def __init__(self, initial: Arrays, settings: TrainingSettings) -> None:
        self.state: dict[str, Moments] = {}
        self._rate = settings.server_learning_rate

    def step(self, current: Arrays, mean_change: Moments) -> Arrays:
        """The weights after this round."""
        return moved(current, lambda name: self._rate * mean_change[name])
