"""Jitter of brightness, contrast, saturation and hue, as one matrix for each picture.

All four are linear in a pixel's colour (Karras et al., arXiv:2006.06676, appendix B), so they
cost one multiplication of matrices, a tenth of converting to HSV and back. They are clamped to
what a byte can hold once, at the end; without clamping between them their order hardly matters.
"""

import math

import torch

#: How far a factor strays from one; SimCLR (arXiv:2002.05709, appendix A) at half its strength,
#: as MoCo v2 (arXiv:2003.04297) has it.
BRIGHTNESS, CONTRAST, SATURATION = 0.4, 0.4, 0.4
#: How far hue turns, in parts of the circle.
HUE = 0.1
#: How bright red, green and blue look: ITU-R BT.601, as everywhere in torchvision.
LUMA = (0.299, 0.587, 0.114)


def colour(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Changes the colours of each picture of uint8 [n, 3, s, s]; returns the same shape."""
    draws = torch.empty(4, len(pixels), 1, 1).uniform_(-1, 1, generator=generator)
    reach = torch.tensor([BRIGHTNESS, CONTRAST, SATURATION, HUE * math.tau])[:, None, None, None]
    brightness, contrast, saturation, angle = (
        draws * reach + torch.tensor([1, 1, 1, 0])[:, None, None, None]
    )
    luma = torch.tensor(LUMA)
    values = pixels.flatten(2).float()
    matrix = brightness * contrast * (_turn(angle) @ _saturate(saturation, luma))
    # Contrast is the distance from the picture's mean grey, which the other two leave alone.
    grey = brightness * (1 - contrast) * (values.mean(2) @ luma)[:, None, None]
    changed = torch.baddbmm(grey.expand(-1, 3, 1), matrix, values)
    return changed.round_().clamp_(0, 255).to(torch.uint8).view_as(pixels)


def _saturate(factor: torch.Tensor, luma: torch.Tensor) -> torch.Tensor:
    """Moves a colour from its own grey by ``factor`` [n, 1, 1]: float32 [n, 3, 3]."""
    return factor * torch.eye(3) + (1 - factor) * luma.expand(3, 3)


def _turn(angle: torch.Tensor) -> torch.Tensor:
    """Turns a colour about the axis of greys by ``angle`` [n, 1, 1] in radians (Rodrigues)."""
    cross = torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]]) / math.sqrt(3)
    mean = torch.full((3, 3), 1 / 3)
    return angle.cos() * (torch.eye(3) - mean) + angle.sin() * cross + mean
