"""The triplet loss with semi-hard negatives of FaceNet (Schroff et al., arXiv:1503.03832, §3)."""

import torch

from protocol.model.losses.negatives import hardest, negatives


def triplet(
    images: torch.Tensor,
    texts: torch.Tensor,
    same: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    margin: float,
) -> torch.Tensor:
    """Every own pair beats one chosen negative by ``margin``, in both directions.

    The negative of an item is the hardest of its semi-hard ones: those that score below its own
    pair, but by less than ``margin``. Where it has none it is the hardest of all: the paper
    waits for another batch, but an item that everything beats is the one that most needs a pull,
    and one that beats everything by the margin costs nothing in either way.

    ``max(0, margin + chosen - own)`` in cosine similarity, summed over the two directions and
    averaged over the items. On the unit sphere the paper's squared distance is 2 - 2 cosine, so
    its margin of 0.2 is 0.1 here. Has no use for ``scale`` and ``bias``. Shapes and errors:
    ``Loss``.
    """
    count = len(images)
    scores, apart = images @ texts.T, negatives(images, texts, same)
    own = scores.diagonal()
    of_texts = _semi_hard(scores, own, apart, margin)
    of_images = _semi_hard(scores[:, :count].T, own, apart[:, :count].T, margin)
    costs = (margin + of_texts - own).relu() + (margin + of_images - own).relu()
    return costs.mean()


def _semi_hard(
    scores: torch.Tensor, own: torch.Tensor, apart: torch.Tensor, margin: float
) -> torch.Tensor:
    """The score [n] of each row's chosen negative, minus infinity for a row without any."""
    below = own[:, None] - scores
    semi = apart & (below > 0) & (below < margin)
    return torch.where(semi.any(1), hardest(scores, semi), hardest(scores, apart))
