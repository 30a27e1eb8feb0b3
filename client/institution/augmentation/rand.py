"""RandAugment (Cubuk et al., arXiv:1909.13719): two operations a picture, drawn from fourteen.

Operations and magnitudes are those of torchvision's ``v2.RandAugment``, which itself draws from
the process's generator and treats all pictures of a batch alike. As every magnitude is 9 of 30,
the pictures that drew the same operation and sign are one batch.
"""

import math
from collections.abc import Callable

import torch
from torchvision.transforms.v2 import functional

LAYERS = 2
MAGNITUDE = 9 / 30

SHEAR = math.degrees(math.atan(0.3 * MAGNITUDE))
TRANSLATE = 150 / 331 * MAGNITUDE
ROTATE = 30.0 * MAGNITUDE
ENHANCE = 0.9 * MAGNITUDE
BITS = 8 - round(4 * MAGNITUDE)
THRESHOLD = 255 * (1 - MAGNITUDE)


def rand(pixels: torch.Tensor, generator: torch.Generator, layers: int = LAYERS) -> torch.Tensor:
    """Takes and returns uint8 [n, 3, s, s]; corners that come into view are black."""
    for _ in range(layers):
        drawn = torch.randint(len(_OPERATIONS), (len(pixels),), generator=generator)
        minus = torch.randint(2, (len(pixels),), generator=generator)
        pixels = _layer(pixels, 2 * drawn + minus)
    return pixels


def _layer(pixels: torch.Tensor, choices: torch.Tensor) -> torch.Tensor:
    """Applies to each picture the operation ``choice // 2``, turned about if it is odd."""
    changed = torch.empty_like(pixels)
    for choice in sorted(set(choices.tolist())):
        mine = choices == choice
        changed[mine] = _OPERATIONS[choice // 2](pixels[mine], -1 if choice % 2 else 1)
    return changed


def _shear(pixels: torch.Tensor, x: float, y: float) -> torch.Tensor:
    return _moved(pixels, shear=[x, y], center=[0, 0])


def _translate(pixels: torch.Tensor, x: int, y: int) -> torch.Tensor:
    part = int(TRANSLATE * pixels.shape[-1])
    return _moved(pixels, translate=[x * part, y * part])


def _moved(pixels: torch.Tensor, **how: list[int] | list[float]) -> torch.Tensor:
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0]}
    moved: torch.Tensor = functional.affine(pixels, **(still | how))
    return moved


_OPERATIONS: tuple[Callable[[torch.Tensor, int], torch.Tensor], ...] = (
    lambda pixels, sign: pixels,
    lambda pixels, sign: _shear(pixels, sign * SHEAR, 0.0),
    lambda pixels, sign: _shear(pixels, 0.0, sign * SHEAR),
    lambda pixels, sign: _translate(pixels, sign, 0),
    lambda pixels, sign: _translate(pixels, 0, sign),
    lambda pixels, sign: functional.rotate(pixels, sign * ROTATE),
    lambda pixels, sign: functional.adjust_brightness(pixels, 1 + sign * ENHANCE),
    lambda pixels, sign: functional.adjust_saturation(pixels, 1 + sign * ENHANCE),
    lambda pixels, sign: functional.adjust_contrast(pixels, 1 + sign * ENHANCE),
    lambda pixels, sign: functional.adjust_sharpness(pixels, 1 + sign * ENHANCE),
    lambda pixels, sign: functional.posterize(pixels, BITS),
    lambda pixels, sign: functional.solarize(pixels, THRESHOLD),
    lambda pixels, sign: functional.autocontrast(pixels),
    lambda pixels, sign: functional.equalize(pixels),
)
