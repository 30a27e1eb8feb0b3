"""Augmentation of pictures, a batch at a time: each picture of a batch is changed on its own.

``flip`` makes "left" a lie, ``colour`` and ``rand`` may do so to "red", ``crop`` and ``erase`` may
lose what a caption names; ``shift`` does nothing of the kind, so it alone is the default.
"""

import math
from collections.abc import Callable

import torch
from torchvision.transforms.v2 import functional

from client.institution.augmentation.colour import colour
from client.institution.augmentation.names import named
from client.institution.augmentation.rand import rand

FLIP_PROBABILITY = 0.5
#: Of the area, and width to height: Szegedy et al., arXiv:1409.4842, section 6, but half the
#: picture at least, where they take 8 %: a caption is about the whole of it.
CROP_SCALE, CROP_RATIO = (0.5, 1.0), (3 / 4, 4 / 3)
#: Zhong et al., arXiv:1708.04896, as torchvision has them.
ERASE_PROBABILITY, ERASE_SCALE, ERASE_RATIO = 0.5, (0.02, 0.33), (0.3, 3.3)
#: ImageNet's mean colour, which most encoders take as zero: erased is "nothing seen", not black.
ERASE_COLOUR = (124, 116, 104)
TRIES = 10

Operation = Callable[[torch.Tensor, torch.Generator], torch.Tensor]


class ImageAugmentation:
    """The operations that a training setting names, one after the other."""

    def __init__(self, names: str) -> None:
        """``names`` as in TrainingSettings.image_augmentation: "crop,flip", or "none".

        Raises UsageError for an unknown name.
        """
        self._operations = named("image-augmentation", names, OPERATIONS)

    def __call__(self, pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Takes and returns uint8 [n, 3, s, s]; ``pixels`` itself is left as it was."""
        for operation in self._operations:
            pixels = operation(pixels, generator)
        return pixels


def shift(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Moves each picture of uint8 [n, 3, s, s] by up to a sixteenth of its side, edges repeated."""
    count, _, _, side = pixels.shape
    most = side // 16
    moves = torch.randint(-most, most + 1, (count, 2, 1), generator=generator)
    where = (torch.arange(side) + moves).clamp(0, side - 1)
    item, channel = torch.arange(count)[:, None, None, None], torch.arange(3)[:, None, None]
    return pixels[item, channel, where[:, 0, None, :, None], where[:, 1, None, None, :]]


def flip(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Mirrors every second picture or so, left to right."""
    chosen = torch.rand(len(pixels), 1, 1, 1, generator=generator) < FLIP_PROBABILITY
    return torch.where(chosen, pixels.flip(3), pixels)


def crop(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Cuts a box out of each picture and stretches it to the picture's own size."""
    side = pixels.shape[-1]
    boxes = _boxes(len(pixels), side, CROP_SCALE, CROP_RATIO, generator).tolist()
    cropped = torch.empty_like(pixels)
    for index, box in enumerate(boxes):
        cropped[index] = functional.resized_crop(pixels[index], *box, size=[side, side])
    return cropped


def erase(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Paints a box over in every second picture or so."""
    side = pixels.shape[-1]
    chosen = torch.rand(len(pixels), 1, 1, generator=generator) < ERASE_PROBABILITY
    boxes = _boxes(len(pixels), side, ERASE_SCALE, ERASE_RATIO, generator)
    top, left, height, width = boxes[:, :, None].unbind(1)
    line = torch.arange(side)
    rows = (line >= top) & (line < top + height)
    columns = (line >= left) & (line < left + width)
    inside = chosen & rows[:, :, None] & columns[:, None, :]
    paint = torch.tensor(ERASE_COLOUR, dtype=torch.uint8)[:, None, None]
    return torch.where(inside[:, None], paint, pixels)


def _boxes(
    count: int,
    side: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    generator: torch.Generator,
) -> torch.Tensor:
    """A box for each of ``count`` pictures, in pixels: int64 [count, 4]: top, left, height, width.

    Drawn as torchvision's RandomResizedCrop does: an area and the logarithm of a ratio, evenly,
    up to ten times until both sides fit; then a place, evenly.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    area = torch.empty(count, TRIES).uniform_(*scale, generator=generator) * side**2
    aspect = torch.empty(count, TRIES).uniform_(low, high, generator=generator).exp()
    sizes = torch.stack(((area / aspect).sqrt(), (area * aspect).sqrt()), 2).round().long()
    first = (sizes <= side).all(2).int().argmax(1)
    size = sizes[torch.arange(count), first].clamp(max=side)
    place = (torch.rand(count, 2, generator=generator) * (side - size + 1)).long()
    return torch.cat((place, size), 1)


OPERATIONS: dict[str, Operation] = {
    "shift": shift,
    "crop": crop,
    "flip": flip,
    "colour": colour,
    "erase": erase,
    "rand": rand,
}
