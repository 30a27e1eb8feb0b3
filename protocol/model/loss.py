"""The contrastive loss of CLIP (Radford et al., arXiv:2103.00020, §2.3 and figure 3)."""

import math

import torch
from torch.nn.functional import cross_entropy

MAX_LOGIT_SCALE = math.log(100.0)


def info_nce(
    images: torch.Tensor, texts: torch.Tensor, logit_scale: torch.Tensor, same: torch.Tensor
) -> torch.Tensor:
    """Symmetric InfoNCE: every image finds its text among the batch's, and the reverse.

    ``images`` and ``texts`` are float32 [n, dim] of unit length, row i of one belonging to row i
    of the other. ``same`` is bool [n, n]: true where two items share a caption; such a pair is
    left out of the negatives, for to push it apart would teach that a caption does not fit an
    image that it describes. ``logit_scale`` (one element) is the logarithm of the inverse
    temperature, held below ln 100 as in the paper. Returns a scalar, in nats.
    """
    scale = logit_scale.clamp(max=MAX_LOGIT_SCALE).exp()
    logits = scale * images @ texts.T
    own = torch.eye(len(logits), dtype=torch.bool)
    logits = logits.masked_fill(same & ~own, -torch.inf)
    target = torch.arange(len(logits))
    return (cross_entropy(logits, target) + cross_entropy(logits.T, target)) / 2


def shared(captions: torch.Tensor) -> torch.Tensor:
    """Which items of a batch share a caption.

    ``captions`` is int64 [n, k]: the numbers of each item's captions, -1 where it has fewer
    than k. Returns bool [n, n], symmetric.
    """
    equal = captions[:, None, :, None] == captions[None, :, None, :]
    real = (captions >= 0)[:, None, :, None]
    return (equal & real).any(-1).any(-1)
