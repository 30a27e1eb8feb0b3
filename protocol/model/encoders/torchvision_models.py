"""torchvision's classification models without their last layer."""

import difflib
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from torchvision import models

from protocol.errors import UsageError
from protocol.model.tower_settings import TowerSettings


class TorchvisionImage(nn.Module):
    """One of ``torchvision.models``: everything below the classifier's last linear layer."""

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__()
        name = settings.image_encoder.removeprefix("torchvision:")
        self.net = build(name, settings.image_size)
        path, classifier = last_linear(self.net)
        self.width: int = classifier.in_features
        parent, _, leaf = path.rpartition(".")
        setattr(self.net.get_submodule(parent), leaf, nn.Identity())
        if settings.image_padding == "same":
            _pad_as_tensorflow(self.net)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features float32 [n, width] of pixels float32 [n, 3, s, s]."""
        features: torch.Tensor = self.net(pixels)
        return features


def names() -> list[str]:
    """The classification models of this torchvision."""
    return list(models.list_models(module=models))


def build(name: str, size: int) -> nn.Module:
    """The whole model with random weights. Raises UsageError, with the nearest known name."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        raise UsageError(
            f"torchvision has no classification model {name!r}",
            f"Did you mean torchvision:{near[0]}?" if near else f"Known: {', '.join(names())}.",
        )
    options: dict[str, Any] = {"image_size": size} if name.startswith("vit_") else {}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    model: nn.Module = models.get_model(name, weights=None, **options)
    return model


def last_linear(model: nn.Module) -> tuple[str, nn.Linear]:
    """The classifier's last layer and its path. Raises UsageError where there is none."""
    found = [(path, one) for path, one in model.named_modules() if isinstance(one, nn.Linear)]
    if not found or not isinstance(found[-1][1], nn.Linear):
        raise UsageError(
            f"{type(model).__name__} ends in no linear layer", "Choose another image encoder."
        )
    return found[-1]


def _pad_as_tensorflow(model: nn.Module) -> None:
    """TensorFlow's SAME padding puts the odd pixel of a stride at the right and bottom."""
    for path, one in list(model.named_modules()):
        if isinstance(one, nn.Conv2d) and max(one.stride) > 1 and max(one.kernel_size) > 1:
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _SameConv(one))


class _SameConv(nn.Module):
    """Pads as the picture's size asks for, then convolves; its weights keep their names.

    Of the pixels that ceil(size / stride) windows need, the smaller half goes left and on top
    (TensorFlow, API documentation of tf.nn, "Notes on padding").
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = conv.weight, conv.bias
        self.stride, self.groups, self.dilation = conv.stride, conv.groups, conv.dilation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = pad(x, (*self._around(x.shape[3], 1), *self._around(x.shape[2], 0)))
        return torch.nn.functional.conv2d(
            x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )

    def _around(self, size: int, axis: int) -> tuple[int, int]:
        stride, reach = self.stride[axis], self.dilation[axis] * (self.weight.shape[2 + axis] - 1)
        missing = max(0, (-(-size // stride) - 1) * stride + reach + 1 - size)
        return missing // 2, missing - missing // 2


def transform_of(name: str) -> dict[str, Any]:
    """How published weights of ``name`` want their pictures, as fields of TowerSettings."""
    if name not in names():
        build(name, 224)  # says what is near
    published = models.get_model_weights(name)
    transform = getattr(published, "DEFAULT", next(iter(published))).transforms()
    size = transform.crop_size[0]
    return {
        "image_size": size,
        "image_crop": size / transform.resize_size[0],
        "image_mean": tuple(transform.mean),
        "image_std": tuple(transform.std),
        "image_resample": transform.interpolation.value,
    }
