"""Features of a model that no longer learns, as fast as this machine gives them."""

import numpy as np
import numpy.typing as npt
import torch

from protocol.model.towers import TwoTowers

Floats = npt.NDArray[np.float32]


class Features:
    """Features of pictures and texts by the backbones of ``model``."""

    def __init__(self, model: TwoTowers) -> None:
        self._model = model

    def images(self, pixels: torch.Tensor) -> Floats:
        """Features float32 [n, w] of uint8 pixels [n, 3, s, s]."""
        with torch.inference_mode():
            features: Floats = self._model.image_features(pixels).numpy()
        return features

    def texts(self, ids: torch.Tensor, mask: torch.Tensor) -> Floats:
        """Features float32 [n, w] of token ids and mask, int64 [n, t]."""
        with torch.inference_mode():
            features: Floats = self._model.text_features(ids, mask).numpy()
        return features
