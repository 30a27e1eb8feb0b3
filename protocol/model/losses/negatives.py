"""Which pairs of a batch are to be told apart, and the hardest of them."""

import torch


def negatives(images: torch.Tensor, texts: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
    """The pairs of different things: neither ``same`` nor own pairs (the diagonal).

    Shapes as in ``Loss``; returns bool [n, m]. Raises ValueError where ``same`` is not [n, m],
    where m < n (an image without its text) and where n is 0.
    """
    count, others = len(images), len(texts)
    if not 0 < count <= others or same.shape != (count, others):
        raise ValueError(
            f"expected 0 < n <= m and same as [n, m], got n = {count}, m = {others}, "
            f"{list(same.shape)}"
        )
    return (~same).fill_diagonal_(False)


def hardest(scores: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """The highest of each row's ``scores`` that are ``among`` the candidates.

    ``scores`` is float32 [n, m], ``among`` bool [n, m]. Returns float32 [n], minus infinity
    where a row has no candidate; equal scores share the gradient.
    """
    return scores.masked_fill(~among, -torch.inf).amax(1)
