"""FedYogi (Reddi et al., arXiv:2003.00295; Zaheer et al., NeurIPS 2018)."""

import numpy as np
import numpy.typing as npt

from server.optimisers.adaptive import BETA2, Adaptive


class FedYogi(Adaptive):
    """v moves by the square of the change, whichever way: it never falls by leaps."""

    def _second_moment(
        self, old: npt.NDArray[np.float64], squared: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.float64]:
        return old - (1 - BETA2) * squared * np.sign(old - squared)
