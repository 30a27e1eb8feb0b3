"""The noisy sum of clipped gradients: what one step of private training learns from the records.

**The unit** is that of ``client.institution.privacy.units``: a group, or an item without one.
**Neighbours** differ in one unit, whose records are replaced by nothing (zero-out, Kairouz et al.,
arXiv:2103.00039); how many units there are is the same in both and is not protected.

A contrastive loss couples the items of a batch, so the gradient of one item does not exist. Here
losses are taken over *microbatches*, and a gradient is that of one microbatch:

1. every unit is drawn with probability q, independently (Poisson sampling);
2. each that was drawn goes to one of K microbatches, independently and uniformly. K follows from
   settings and the number of units. With ``microbatch`` 1 each unit is a microbatch by itself, and
   its negatives are public captions alone;
3. each microbatch has its own seed, fresh from the operating system. It decides captions,
   augmentation, dropout and public negatives, so that what happens in one microbatch depends on
   nothing in another;
4. its gradient over all tensors that learn, jointly, is clipped to norm C on a grid;
5. the sum gets noise on that grid.

Whatever the other units do and draw, taking one unit away changes one microbatch: from a gradient
to none where units stay alone, by C at most; else from one gradient to another, by 2 C at most.
That is the ``sensitivity``, the noise's deviation is ``noise`` times it, and the step is a
Poisson-sampled Gaussian mechanism with exactly these parameters. Steps of the optimiser, rounding
and compression only process what has been released.

**Not taken.** Logit-DP (Kong, Munoz Medina and Ribero, arXiv:2310.03104) bounds one item's reach
within a shared batch of n: it clips the gradient of each similarity, n^2 of them, to B, and the
sensitivity is (G1 + G2 + (n - 1) L) B with bounds on the loss's derivatives by the similarities.
L is how far one similarity moves the softmax weight of another; cosines over a temperature t are
2 / t apart at most, so by our own estimate (n - 1) L grows towards exp(2 / t) before large n helps:
10^12 at the 0.07 that CLIP begins with. Microbatches that are the same in every step would make
one record of each answerable for the others, and show no item more than a few negatives.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from client.institution.privacy.units import Units
from client.institution.randomness import Stream
from protocol.accountant import Spending
from protocol.clipping import on_grid
from protocol.discrete_gaussian import SIGMA, DiscreteGaussian
from protocol.errors import TrainingError
from protocol.model.settings import TrainingSettings


@dataclass(frozen=True, slots=True)
class Plan:
    """What private training of ``units`` units under some settings does; nothing is random yet.

    ``sampling`` is the probability q of each unit, ``steps`` how many there are in one epoch,
    ``buckets`` the number K of microbatches (0: one for each unit), ``scale`` how many microbatches
    a step expects. ``limit`` is the norm C on the grid, ``clip`` in units of the gradient.
    """

    units: int
    noise: float
    clip: float
    sampling: float
    steps: int
    buckets: int
    scale: float
    limit: float

    @classmethod
    def of(cls, settings: TrainingSettings, units: int) -> "Plan":
        """The plan of a run. Raises TrainingError without units."""
        if not units:
            raise TrainingError("no records to train on", "add training pairs")
        drawn = min(settings.batch_size, units)
        alone = settings.privacy_microbatch == 1
        buckets = 0 if alone else max(1, drawn // settings.privacy_microbatch)
        return cls(
            units=units,
            noise=settings.privacy_noise,
            clip=settings.privacy_clip,
            sampling=drawn / units,
            steps=math.ceil(units / drawn),
            buckets=buckets,
            scale=float(buckets or drawn),
            limit=SIGMA / settings.privacy_noise / (1 if alone else 2),
        )

    def spending(self, epochs: int) -> Spending:
        """What ``epochs`` epochs cost."""
        return Spending(self.noise, self.sampling, self.steps * epochs)


class NoisySum:
    """Draws microbatches, adds up their clipped gradients, and gives out the sum with noise."""

    def __init__(self, plan: Plan, groups: torch.Tensor) -> None:
        self._plan, self._units = plan, Units(groups)
        self._stream, self._noise = Stream(), DiscreteGaussian()

    def microbatches(self) -> Sequence[tuple[torch.Tensor, torch.Generator]]:
        """The items of each microbatch of one step, int64, and what decides all else in it."""
        found = self._units.draw(self._stream, self._plan.sampling, self._plan.buckets)
        seeds = self._stream.uniform(len(found), 62).tolist()
        return [
            (items, torch.Generator().manual_seed(seed & (2**62 - 1)))
            for items, seed in zip(found, seeds, strict=True)
        ]

    def begin(self, learning: Sequence[torch.nn.Parameter]) -> None:
        """Starts a step over all tensors that learn."""
        self._learning = list(learning)
        self._sum = np.zeros(sum(value.numel() for value in learning))

    def add(self) -> None:
        """Adds one microbatch's gradients, clipped, and clears them.

        A tensor that the loss does not use has none, which counts as zero. Raises TrainingError
        where they are not finite.
        """
        flat = torch.cat(
            [
                torch.zeros(value.numel()) if value.grad is None else value.grad.flatten()
                for value in self._learning
            ]
        )
        try:
            self._sum += on_grid(flat.numpy(), self._plan.clip, self._plan.limit)
        except ValueError as error:
            raise TrainingError(
                "a gradient is no longer finite", "train with a lower learning rate"
            ) from error
        for value in self._learning:
            value.grad = None

    def release(self) -> None:
        """Ends the step: gradients are now the noisy sum over the expected number, for everybody.

        This is the only place where anything of the records leaves the mechanism.
        """
        noisy = self._sum + self._noise.draw(len(self._sum))
        step = self._plan.clip / self._plan.limit / self._plan.scale
        flat = torch.from_numpy(noisy * step).float()
        parts = torch.split(flat, [value.numel() for value in self._learning])
        for value, part in zip(self._learning, parts, strict=True):
            value.grad = part.reshape(value.shape).clone()
