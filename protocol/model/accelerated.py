"""Features of a model that no longer learns, as fast as this machine gives them."""

from collections.abc import Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from protocol.errors import UsageError
from protocol.model.runtime.tower import OnnxTower, Precision
from protocol.model.tower_settings import SCRATCH
from protocol.model.towers import TwoTowers

Floats = npt.NDArray[np.float32]
#: Of unlike lengths: an example without padding would be traced to a tower that ignores it.
_EXAMPLES = ("a dog", "two small children play with a red ball in the snow")
_DIFFERENCE: dict[Precision, float] = {"float32": 1e-3, "int8": 0.5}
_CALIBRATION = 64


class Features:
    """Features of pictures and texts by the backbones of ``model``; threads may share it.

    Pretrained encoders run in ONNX Runtime, exported when they are first asked; they are large,
    and PyTorch is several times slower with them on a CPU. Small ones from scratch run in
    PyTorch, which needs no export. With ``precision`` "int8" pretrained ones have weights of
    eight bits: some four times smaller and two to three times faster, a cosine of about 0.99
    away. Convolutions are then calibrated on the first pictures that are asked for. Raises
    :class:`UsageError` for an encoder that cannot be exported.
    """

    def __init__(self, model: TwoTowers, precision: Precision = "float32") -> None:
        self._model = model
        self._precision = precision
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
                levels = torch.arange(2 * 3 * side * side).reshape(2, 3, side, side) % 251
                self._image = _export(
                    _Images(self._model),
                    (levels.to(torch.uint8),),
                    self._precision,
                    [part.numpy() for part in torch.split(pixels[:_CALIBRATION], 8)],
                )
        return self._image(pixels.numpy())

    def texts(self, ids: torch.Tensor, mask: torch.Tensor) -> Floats:
        """Features float32 [n, w] of token ids and mask, int64 [n, t]."""
        if self._model.settings.text_encoder == SCRATCH:
            with torch.inference_mode():
                features: Floats = self._model.text_features(ids, mask).numpy()
            return features
        with self._lock:
            if self._text is None:
                example = self._model.tokenizer(_EXAMPLES)
                self._text = _export(_Texts(self._model), example, self._precision)
        return self._text(ids.numpy(), mask.numpy())


def _export(
    module: nn.Module,
    example: tuple[torch.Tensor, ...],
    precision: Precision,
    calibration: Sequence[npt.NDArray[np.uint8]] | None = None,
) -> OnnxTower:
    """The tower, once it has given what PyTorch gives: tracing may fix what depends on inputs."""
    tower = OnnxTower.export(module, example, precision, calibration=calibration)
    with torch.inference_mode():
        expected = module(*example).numpy()
    found = tower(*(tensor.numpy() for tensor in example))
    difference = float(np.abs(found - expected).max() / max(1e-6, np.abs(expected).max()))
    if not difference < _DIFFERENCE[precision]:
        raise UsageError(
            f"in ONNX Runtime ({precision}) this encoder gives other features, by "
            f"{difference:.1g} of the largest",
            "Choose another encoder" + (", or float32." if precision == "int8" else "."),
        )
    return tower


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
