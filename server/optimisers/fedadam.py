"""FedAdam (Reddi et al., arXiv:2003.00295)."""

import numpy as np
import numpy.typing as npt

from server.optimisers.adaptive import BETA2, Adaptive


class FedAdam(Adaptive):
    """v forgets at a steady pace, as in Adam."""

    def _second_moment(
        self, old: npt.NDArray[np.float64], squared: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        return BETA2 * old + (1 - BETA2) * squared
