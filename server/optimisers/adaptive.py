"""What FedAdam and FedYogi share (Reddi et al., arXiv:2003.00295, algorithm 2).

As the paper has it: no correction of the moments' bias, and v begins at tau squared. Flower's
strategies of these names begin at v = 0, and its FedAdam corrects the bias by the number of the
round, which counts a round too many and also those whose replies were not used.
"""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt

from protocol.model.settings import TrainingSettings
from protocol.model.update import Arrays
from server.optimisers.optimiser import Moments, filled, moved

#: The paper's: how fast the second moment forgets, and the degree of adaptivity.
BETA2 = 0.99
TAU = 1e-3


class Adaptive(ABC):
    """m = beta1 m + (1 - beta1) mean change; weights plus rate times m / (sqrt(v) + tau).

    beta1 is server_momentum. A step moves every weight by about the rate, however small the
    changes are: 1, which is right for FedAvg, leaves nothing of a model; the paper's best lie
    between 0.001 and 0.1.
    """

    def __init__(self, initial: Arrays, settings: TrainingSettings) -> None:
        self.state: dict[str, Moments] = {"m": filled(initial, 0.0), "v": filled(initial, TAU**2)}
        self._rate = settings.server_learning_rate
        self._beta1 = settings.server_momentum

    def step(self, current: Arrays, mean_change: Moments) -> Arrays:
        """The weights after this round."""
        m = {
            name: self._beta1 * old + (1 - self._beta1) * mean_change[name]
            for name, old in self.state["m"].items()
        }
        v = {
            name: self._second_moment(old, np.square(mean_change[name]))
            for name, old in self.state["v"].items()
        }
        self.state = {"m": m, "v": v}
        return moved(current, lambda name: self._rate * m[name] / (np.sqrt(v[name]) + TAU))

    @abstractmethod
    def _second_moment(
        self, old: npt.NDArray[np.float64], squared: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]: ...
