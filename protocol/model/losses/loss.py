"""What a loss is, and the four that a training run may name."""

import math
from typing import Protocol

import torch

from protocol.errors import MalformedMessage
from protocol.model.losses.info_nce import info_nce
from protocol.model.losses.max_margin import max_margin
from protocol.model.losses.sigmoid import sigmoid
from protocol.model.losses.triplet import triplet


class Loss(Protocol):
    """Lower where every item's image and text are nearer to each other than to anything else.

    ``images`` is float32 [n, d] and ``texts`` float32 [m, d] with m >= n, rows of unit length.
    Row i of ``images`` belongs to row i of ``texts``; rows n to m-1 of ``texts`` belong to no
    image and are more negatives for images alone, such as public captions. ``same`` is bool
    [n, m]: true where item i and text j are of the same thing (they share a caption, a patient,
    a product). Such a pair is never a negative, for to push it apart would teach that a caption
    does not fit an image that it describes. The diagonal is the positive, whatever it says.

    ``scale`` (one element) is the logarithm of the inverse temperature, ``bias`` (one element)
    is added to every logit, ``margin`` is a difference of cosine similarities. A loss that has
    no use for one of them leaves it without a gradient.

    Returns a scalar, a mean over the n items, never negative. An item without any negative adds
    nothing to it, save to the sigmoid loss, where its own pair stands for itself. Memory and
    work are those of a few [n, m] matrices. Raises ValueError where ``same`` is not [n, m],
    where m < n and where n is 0.
    """

    def __call__(
        self,
        images: torch.Tensor,
        texts: torch.Tensor,
        same: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor,
        margin: float,
    ) -> torch.Tensor:
        """The loss of one batch."""


_LOSSES: dict[str, Loss] = {
    "info-nce": info_nce,
    "sigmoid": sigmoid,
    "max-margin": max_margin,
    "triplet": triplet,
}


def loss_by_name(name: str) -> Loss:
    """The loss that ``TrainingSettings.loss`` names; raises MalformedMessage for another name."""
    if name not in _LOSSES:
        raise MalformedMessage(f"loss: expected one of {', '.join(_LOSSES)}, got {name!r:.40}")
    return _LOSSES[name]


def initial_scale(name: str, temperature: float) -> float:
    """The scale that training starts with: ln(1 / temperature).

    The sigmoid loss starts with ln 10 whatever the temperature (SigLIP, section 3.2): scale and
    bias are chosen together there.
    """
    return math.log(10.0) if name == "sigmoid" else math.log(1.0 / temperature)


def initial_bias(name: str) -> float:
    """The bias that training starts with: 0, and -10 for the sigmoid loss (SigLIP, section 3.2).

    Nearly all pairs of a batch are negatives. With -10 they start as such, and the first steps
    need not begin by pushing everything apart.
    """
    return -10.0 if name == "sigmoid" else 0.0
