"""The two calls of ``client.institution.training`` before it knew more than one loss.

Goes as soon as it calls ``loss_by_name`` and ``same_things`` itself.
"""

import torch

from protocol.model.losses.info_nce import info_nce as _info_nce
from protocol.model.losses.same import same_things


def info_nce(
    images: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor, same: torch.Tensor
) -> torch.Tensor:
    """``losses.info_nce`` with the former order of arguments."""
    return _info_nce(images, texts, same, logit_scale, torch.zeros(1), 0.0)


def shared(captions: torch.Tensor) -> torch.Tensor:
    """``same_things`` without groups."""
    return same_things(captions, torch.full((len(captions),), -1))
