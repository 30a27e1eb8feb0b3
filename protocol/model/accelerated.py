"""Features of a model that no longer learns, as fast as this machine gives them."""

from threading import Lock

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from protocol.model.runtime.tower import OnnxTower
from protocol.model.tower_settings import SCRATCH
from protocol.model.towers import TwoTowers

Floats = npt.NDArray[np.float32]


class Features:
    """Features of pictures and texts by the backbones of ``model``; threads may share it.

    Pretrained encoders run in ONNX Runtime, exported when they are first asked; they are large,
    and PyTorch is several times slower with them on a CPU. Small ones from scratch run in
    PyTorch, which needs no export. Raises :class:`UsageError` for an encoder that cannot be
    exported.
    """

    def __init__(self, model: TwoTowers) -> None:
        self._model = model
        self._lock = Lock()
        self._image: OnnxTower | None = None
        self._text: OnnxTower | None = None

    def images(self, pixels: torch.Tensor) -> Floats:
        """Features float32 [n, w] of uint8 pixels [n, 3, s, s]."""
        settings = self._model.settings
        if settings.image_encoder == SCRATCH:
            with torch.inference_mode():
                features: Floats = self._model.image_features(pixels).numpy()
            return features
        with self._lock:
            if self._image is None:
                side = settings.image_size
                example = torch.zeros((2, 3, side, side), dtype=torch.uint8)
                self._image = OnnxTower.export(_Images(self._model), (example,), "float32")
        return self._image(pixels.numpy())

    def texts(self, ids: torch.Tensor, mask: torch.Tensor) -> Floats:
        """Features float32 [n, w] of token ids and mask, int64 [n, t]."""
        if self._model.settings.text_encoder == SCRATCH:
            with torch.inference_mode():
                features: Floats = self._model.text_features(ids, mask).numpy()
            return features
        with self._lock:
            if self._text is None:
                example = torch.ones((2, 8), dtype=torch.int64)
                module = _Texts(self._model)
                self._text = OnnxTower.export(module, (example, example), "float32")
        return self._text(ids.numpy(), mask.numpy())


class _Images(nn.Module):
    def __init__(self, model: TwoTowers) -> None:
        super().__init__()
        self.model = model

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.model.image_features(pixels)


class _Texts(nn.Module):
    def __init__(self, model: TwoTowers) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self.model.text_features(ids, mask)
