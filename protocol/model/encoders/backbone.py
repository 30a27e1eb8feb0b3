"""What stands under a projection: something that makes one feature vector of a picture or text."""

from typing import Protocol, runtime_checkable

import torch

from protocol.errors import UsageError


@runtime_checkable
class Backbone(Protocol):
    """An ``nn.Module`` that knows the width of what it returns."""

    width: int

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Returns float32 [n, width] of pictures, float32 [n, 3, s, s] normalised, or of texts,
        ids and mask int64 [n, t].
        """
        ...


def pool(
    states: torch.Tensor, pooled: torch.Tensor | None, how: str, mask: torch.Tensor | None = None
) -> torch.Tensor:
    """One vector of a sequence float32 [n, t, w], or of a map [n, w, h, w'], as settings say.

    ``pooled`` is what the encoder itself offers; ``mask`` int64 [n, t] is 1 where there is a token.
    """
    if how == "pooled":
        if pooled is None:
            raise UsageError("this encoder pools nothing itself", "choose mean or cls pooling")
        return pooled.flatten(1)
    if states.ndim == 4:
        return states.mean((2, 3))
    if how == "cls":
        return states[:, 0]
    if mask is None:
        return states.mean(1)
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1)
