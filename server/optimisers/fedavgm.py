"""FedAvgM (Hsu et al., arXiv:1909.06335, section 4.3): averaging with momentum."""

from protocol.model.settings import TrainingSettings
from protocol.model.update import Arrays
from server.optimisers.optimiser import Moments, filled, moved


class FedAvgM:
    """v = momentum v + mean change; weights plus server_learning_rate times v.

    A steady change is multiplied by 1 / (1 - momentum), ten at 0.9: the rate wants to be lower
    than for FedAvg by as much.
    """

    def __init__(self, initial: Arrays, settings: TrainingSettings) -> None:
        self.state: dict[str, Moments] = {"velocity": filled(initial, 0.0)}
        self._rate = settings.server_learning_rate
        self._momentum = settings.server_momentum

    def step(self, current: Arrays, mean_change: Moments) -> Arrays:
        """The weights after this round."""
        velocity = {
            name: self._momentum * old + mean_change[name]
            for name, old in self.state["velocity"].items()
        }
        self.state = {"velocity": velocity}
        return moved(current, lambda name: self._rate * velocity[name])
