"""The sigmoid loss of SigLIP (Zhai et al., arXiv:2303.15343, section 3.2 and algorithm 1)."""

import torch
from torch.nn.functional import logsigmoid

from protocol.model.losses.negatives import negatives
from protocol.model.losses.temperature import inverse_temperature


def sigmoid(
    images: torch.Tensor,
    texts: torch.Tensor,
    same: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    margin: float,
) -> torch.Tensor:
    """Does this text belong to this image? Asked of every pair alone; in nats an image.

    The sum over all pairs of different things and all own pairs, divided by the number of
    images. No pair is compared with another, so small batches lose less than with a softmax.
    Start ``scale`` and ``bias`` with ``initial_scale`` and ``initial_bias``. Has no use for
    ``margin``. Shapes and errors: ``Loss``.
    """
    logits = inverse_temperature(scale) * images @ texts.T + bias
    apart = logsigmoid(-logits).masked_fill(~negatives(images, texts, same), 0.0)
    return -(apart.sum() + logsigmoid(logits.diagonal()).sum()) / len(images)
