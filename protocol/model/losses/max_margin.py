"""The loss of VSE++: the hardest negative alone (Faghri et al., arXiv:1707.05612, equation 6)."""

import torch

from protocol.model.losses.negatives import hardest, negatives


def max_margin(
    images: torch.Tensor,
    texts: torch.Tensor,
    same: torch.Tensor,
    scale: torch.Tensor,
    bias: torch.Tensor,
    margin: float,
) -> torch.Tensor:
    """Every own pair beats the batch's hardest negative by ``margin``, in both directions.

    ``max(0, margin + hardest - own)`` in cosine similarity, summed over the two directions and
    averaged over the items (the paper adds the items up). The image's hardest negative may be an
    extra text. Has no use for ``scale`` and ``bias``. Shapes and errors: ``Loss``.
    """
    count = len(images)
    scores, apart = images @ texts.T, negatives(images, texts, same)
    own = scores.diagonal()
    of_texts = hardest(scores, apart)
    of_images = hardest(scores[:, :count].T, apart[:, :count].T)
    costs = (margin + of_texts - own).relu() + (margin + of_images - own).relu()
    return costs.mean()
