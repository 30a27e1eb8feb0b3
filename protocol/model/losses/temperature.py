"""The learned temperature of the losses that have one."""

import math
from typing import Any

import torch

#: CLIP holds the inverse temperature below 100, for stability (arXiv:2103.00020, section 2.5).
MAX_LOGIT_SCALE = math.log(100.0)


def inverse_temperature(scale: torch.Tensor) -> torch.Tensor:
    """``exp(scale)``, at most 100; ``scale`` and the result have one element.

    At the bound and beyond it the gradient still lets a step lead down. Plain clamping has none
    there: a temperature that starts at 0.01, or steps over the bound once, would never learn.
    """
    bounded: torch.Tensor = _Bounded.apply(scale)
    return bounded.exp()


class _Bounded(torch.autograd.Function):
    """Clamps from above; passes back what a descent from above would follow."""

    @staticmethod
    def forward(ctx: Any, scale: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(scale)
        return scale.clamp(max=MAX_LOGIT_SCALE)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (scale,), (gradient,) = ctx.saved_tensors, gradients
        return gradient.masked_fill((scale >= MAX_LOGIT_SCALE) & (gradient < 0), 0.0)
