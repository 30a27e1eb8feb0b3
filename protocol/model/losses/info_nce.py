"""InfoNCE as in CLIP (Radford et al., arXiv:2103.00020, section 2.3 and figure 3)."""

import torch
from torch.nn.functional import cross_entropy

from protocol.model.losses.negatives import negatives
from protocol.model.losses.temperature import inverse_temperature


def info_nce(
    images: torch.Tensor,
    texts: torch.Tensor,
    same: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    margin: float,
) -> torch.Tensor:
    """Every image finds its text among the batch's, and the reverse: the mean of both, in nats.

    A softmax over the similarities, ``exp(scale)`` times as steep. The extra texts stand in the
    one from image to text alone: no image is theirs. Has no use for ``bias`` and ``margin``.
    Shapes and errors: ``Loss``.
    """
    count = len(images)
    logits = inverse_temperature(scale) * images @ texts.T
    compared = negatives(images, texts, same).fill_diagonal_(True)
    logits = logits.masked_fill(~compared, -torch.inf)
    target = torch.arange(count, device=logits.device)
    to_texts, to_images = cross_entropy(logits, target), cross_entropy(logits[:, :count].T, target)
    return (to_texts + to_images) / 2
