"""Training the two towers on one institution's pairs: plain torch, no federation.

Everything random comes from the generator that is passed in, never from the process's own:
institutions may share a process, and their threads one generator. With one torch thread the
same inputs give the same bits. Private training is the exception: what protects records comes
from the operating system, and no two runs are alike.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch

from client.institution.gradient_cache import backward
from client.institution.privacy.mechanism import NoisySum, Plan
from client.institution.privacy.units import Units
from client.institution.training_set import Drawn, TrainingSet
from protocol.errors import TrainingError
from protocol.model.losses import loss_by_name, same_things
from protocol.model.settings import TrainingSettings
from protocol.model.towers import TwoTowers

WARM_UP = 0.05
#: The optimiser's fresh moments are guesses at first (RAdam, arXiv:1908.03265, §3), and every
#: round starts with fresh ones: its first batches go slowly. Worth three points of recall@10.
SETTLING_BATCHES = 20
BETAS = (0.9, 0.98)
MAX_NORM = 1.0

#: Set it to make every training in this process end at its next batch, with TrainingError.
#: An interrupt from the keyboard reaches the main thread alone; this carries it to the others.
interrupted = threading.Event()


@contextmanager
def _denormals_are_zero() -> Iterator[None]:
    """The moments of words that never come decay to denormal numbers, which processors handle a
    hundred times slower than zero. A mode of the calling thread, so it is given back.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


@_denormals_are_zero()
def train_epochs(
    model: TwoTowers,
    data: TrainingSet,
    settings: TrainingSettings,
    generator: torch.Generator,
    epochs: int,
    span: tuple[float, float] = (0.0, 1.0),
    watch: Callable[[float], None] | None = None,
) -> float:
    """Trains ``model`` in place for ``epochs`` passes over ``data``; returns the mean loss in nats.

    ``span`` says which part of the whole run this is, as fractions: the learning rate follows
    one cosine over all rounds (Loshchilov & Hutter, arXiv:1608.03983) after a short warm-up. The
    optimiser (AdamW, arXiv:1711.05101) starts afresh at each call, for its moments belong to a
    model that has since been averaged. Each image is shown once an epoch with one of its captions.
    ``watch`` is told after each batch how far this call is, from 0 to 1.

    With ``settings.privacy_noise`` the training is private: see
    ``client.institution.privacy.mechanism``. The loss that it returns is not: it must not leave.

    Raises TrainingError when there are fewer than two items, the loss or, in private training, a
    gradient is not finite, or ``interrupted`` is set.
    """
    if len(data) < 2:
        raise TrainingError("fewer than two pairs: nothing to tell apart", "add training pairs")
    data.prepare(model, settings)
    learning = [value for value in model.parameters() if value.requires_grad]
    start = [value.detach().clone() for value in learning] if settings.proximal else []
    optimiser = _optimiser(learning, settings.weight_decay)
    if settings.privacy_noise:
        plan = plan_of(data, settings)
        batches, gradients = plan.steps, _private_gradients(model, data, settings, plan, epochs)
    else:
        batches = math.ceil(len(data) / settings.batch_size)
        gradients = _gradients(model, data, settings, generator, batches, epochs)
    losses: list[float] = []
    for loss in gradients:
        if interrupted.is_set():
            raise TrainingError("training was interrupted")
        progress = span[0] + (span[1] - span[0]) * (len(losses) + 0.5) / (batches * epochs)
        # Private steps are few, and every one is paid for: none goes slowly.
        settled = 1.0 if settings.privacy_noise else min(1.0, (len(losses) + 1) / SETTLING_BATCHES)
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * rate(progress, settings.schedule) * settled
        for value, before in zip(learning, start, strict=bool(start)):
            if value.grad is not None:
                # The gradient of mu/2 |w - w0|^2 (Li et al., arXiv:1812.06127, equation 2).
                value.grad.add_(value.detach() - before, alpha=settings.proximal)
        if not settings.privacy_noise:
            torch.nn.utils.clip_grad_norm_(learning, MAX_NORM)
        optimiser.step()
        losses.append(loss)
        if not math.isfinite(loss):
            raise TrainingError(
                "the loss is no longer a finite number", "train with a lower learning rate"
            )
        if watch is not None:
            watch(len(losses) / (batches * epochs))
    return sum(losses) / len(losses)


def plan_of(data: TrainingSet, settings: TrainingSettings) -> Plan:
    """What private training on ``data`` does, and so what it will cost.

    Raises TrainingError where it could learn nothing.
    """
    if settings.privacy_microbatch == 1 and not (settings.public_negatives and len(data.public)):
        raise TrainingError(
            "a unit that stays alone has nothing to be told apart from",
            "give public captions, or larger microbatches (privacy-microbatch)",
        )
    return Plan.of(settings, len(Units(data.groups)))


def _gradients(
    model: TwoTowers,
    data: TrainingSet,
    settings: TrainingSettings,
    generator: torch.Generator,
    batches: int,
    epochs: int,
) -> Iterator[float]:
    """Leaves the gradient of one batch after the other in the model; yields its loss."""
    for chosen in _batches(len(data), batches, epochs, generator):
        model.zero_grad()
        yield _step(model, data, settings, chosen, generator)


def _private_gradients(
    model: TwoTowers, data: TrainingSet, settings: TrainingSettings, plan: Plan, epochs: int
) -> Iterator[float]:
    """The same with noisy sums. The losses are the records' own: they must not leave."""
    total = NoisySum(plan, data.groups)
    learning = [value for value in model.parameters() if value.requires_grad]
    for _ in range(plan.steps * epochs):
        model.zero_grad()
        total.begin(learning)
        losses = []
        for chosen, generator in total.microbatches():
            losses.append(_step(model, data, settings, chosen, generator))
            total.add()
        total.release()
        yield sum(losses) / max(1, len(losses))


def _step(
    model: TwoTowers,
    data: TrainingSet,
    settings: TrainingSettings,
    chosen: torch.Tensor,
    generator: torch.Generator,
) -> float:
    """One loss and its gradients, ``settings.chunk_size`` items at a time in memory."""
    draw = torch.rand(len(chosen), generator=generator)
    counts = (data.numbers[chosen] >= 0).sum(1)
    texts = data.numbers[chosen, (draw * counts).long()]
    same = same_things(data.numbers[chosen], data.groups[chosen])
    if settings.public_negatives and len(data.public):
        place = torch.randint(len(data.public), (settings.public_negatives,), generator=generator)
        public = data.public[place]
        # A public caption that is also an item's own is no negative of it.
        own = (data.numbers[chosen][:, :, None] == public).any(1)
        same, texts = torch.cat([same, own], 1), torch.cat([texts, public])
    pictures = data.draw_images(chosen, generator)
    sentences = data.draw_texts(texts, generator)
    loss = loss_by_name(settings.loss)

    def of(images: torch.Tensor, said: torch.Tensor) -> torch.Tensor:
        return loss(images, said, same, model.logit_scale, model.logit_bias, settings.margin)

    if not settings.chunk_size:
        value = of(data.embed_images(model, pictures), data.embed_texts(model, sentences))
        value.backward()  # type: ignore[no-untyped-call]
        return value.item()
    images = _chunks(data.embed_images, model, pictures, settings.chunk_size)
    said = _chunks(data.embed_texts, model, sentences, settings.chunk_size)
    return backward(images, said, of).item()


def _chunks(
    embed: Callable[[TwoTowers, Drawn], torch.Tensor], model: TwoTowers, drawn: Drawn, size: int
) -> list[Callable[[], torch.Tensor]]:
    parts = zip(*(torch.split(one, size) for one in drawn), strict=True)
    return [partial(embed, model, part) for part in parts]


def rate(progress: float, schedule: str = "cosine") -> float:
    """The learning rate at ``progress`` (0 to 1) through the run, as a part of its peak."""
    falling = {
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
        "linear": 1 - progress,
        "constant": 1.0,
    }
    return min(1.0, progress / WARM_UP) * falling[schedule]


def _optimiser(learning: list[torch.nn.Parameter], decay: float) -> torch.optim.AdamW:
    """Weight decay for matrices alone: on a gain or a temperature it would be a wrong pull."""
    groups: list[dict[str, Any]] = [
        {"params": [value for value in learning if value.ndim > 1], "weight_decay": decay},
        {"params": [value for value in learning if value.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=BETAS, fused=True)


def _batches(
    items: int, batches: int, epochs: int, generator: torch.Generator
) -> Iterator[torch.Tensor]:
    """Every item once an epoch in random order, in batches as even as can be.

    Even ones, so that there is no last batch of a few items in which the task is trivial, nor
    one of a single item in which there is no task.
    """
    for _ in range(epochs):
        order = torch.randperm(items, generator=generator)
        yield from (part for part in torch.tensor_split(order, batches) if len(part) > 1)
