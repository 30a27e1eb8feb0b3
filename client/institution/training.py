"""Training the two towers on one institution's pairs: plain torch, no federation.

Everything random comes from the generator that is passed in, never from the process's own:
institutions may share a process, and their threads one generator. With one torch thread the
same inputs give the same bits.
"""

import math
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from client.institution.images import load_pixels
from client.institution.pairs import PairFolder
from protocol.errors import TrainingError
from protocol.model.loss import info_nce, shared
from protocol.model.settings import TrainingSettings
from protocol.model.towers import TwoTowers

WARM_UP = 0.05
#: The optimiser's fresh moments are guesses at first (RAdam, arXiv:1908.03265, §3), and every
#: round starts with fresh ones: its first batches go slowly. Worth three points of recall@10.
SETTLING_BATCHES = 20
WEIGHT_DECAY = 0.05
BETAS = (0.9, 0.98)
MAX_NORM = 1.0

#: Set it to make every training in this process end at its next batch, with TrainingError.
#: An interrupt from the keyboard reaches the main thread alone; this carries it to the others.
interrupted = threading.Event()


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Pictures and what is said of each: uint8 [n, 3, s, s], and n tuples of captions."""

    pixels: npt.NDArray[np.uint8]
    captions: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        if len(self.pixels) != len(self.captions):
            raise ValueError(f"{len(self.pixels)} pictures but {len(self.captions)} captions")

    def __len__(self) -> int:
        return len(self.captions)

    def caption_numbers(self) -> tuple[list[str], torch.Tensor]:
        """The distinct captions, and each item's as indices: int64 [n, most], padded with -1.

        Captions that differ in case or in surrounding space count as one.
        """
        numbers: dict[str, int] = {}
        rows = [
            [numbers.setdefault(text.strip().casefold(), len(numbers)) for text in texts]
            for texts in self.captions
        ]
        most = max(map(len, rows), default=0)
        padded = [row + [-1] * (most - len(row)) for row in rows]
        return list(numbers), torch.tensor(padded, dtype=torch.int64).reshape(len(rows), most)


def read_split(folder: PairFolder, split: str, image_size: int) -> tuple[TrainingSet, int]:
    """Decodes one split of a folder; also returns how many lines and images were unusable."""
    pairs = folder.split(split)
    pixels, kept, skips = load_pixels(folder, pairs, image_size)
    captions = tuple(pairs[index].captions for index in kept)
    return TrainingSet(pixels, captions), len(folder.skipped) + len(skips)


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
    model that has since been averaged. Each image is shown once an epoch, slightly shifted, with
    one of its captions. Neither flips nor changes of colour: "left" and "red" must stay true.
    ``watch`` is told after each batch how far this call is, from 0 to 1.

    Raises TrainingError when there are fewer than two items, the loss is not finite, or
    ``interrupted`` is set.
    """
    if len(data) < 2:
        raise TrainingError("fewer than two pairs: nothing to tell apart", "add training pairs")
    texts, numbers = data.caption_numbers()
    ids, mask = model.tokenizer(texts)
    pixels = torch.from_numpy(data.pixels)
    counts = (numbers >= 0).sum(1)
    optimiser = _optimiser(model)
    batches = math.ceil(len(data) / settings.batch_size)
    losses: list[float] = []
    model.train()
    for chosen in _batches(len(data), batches, epochs, generator):
        if interrupted.is_set():
            raise TrainingError("training was interrupted")
        progress = span[0] + (span[1] - span[0]) * (len(losses) + 0.5) / (batches * epochs)
        settled = min(1.0, (len(losses) + 1) / SETTLING_BATCHES)
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * rate(progress) * settled
        draw = torch.rand(len(chosen), generator=generator)
        own = numbers[chosen, (draw * counts[chosen]).long()]
        width = int(mask[own].sum(1).max())
        loss = info_nce(
            model.encode_image(_shift(pixels[chosen], generator)),
            model.encode_text(ids[own, :width], mask[own, :width]),
            model.logit_scale,
            shared(numbers[chosen]),
        )
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM)
        optimiser.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise TrainingError(
                "the loss is no longer a finite number", "train with a lower learning rate"
            )
        if watch is not None:
            watch(len(losses) / (batches * epochs))
    return sum(losses) / len(losses)


def rate(progress: float) -> float:
    """The learning rate at ``progress`` (0 to 1) through the run, as a part of its peak."""
    return min(1.0, progress / WARM_UP) * 0.5 * (1 + math.cos(math.pi * progress))


def _optimiser(model: TwoTowers) -> torch.optim.AdamW:
    """Weight decay for matrices alone: on a gain or a temperature it would be a wrong pull."""
    matrices = [value for value in model.parameters() if value.ndim > 1]
    others = [value for value in model.parameters() if value.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": others, "weight_decay": 0.0},
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


def _shift(pixels: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Moves each picture of uint8 [n, 3, s, s] by up to a sixteenth of its side, edges repeated."""
    count, _, _, side = pixels.shape
    most = side // 16
    moves = torch.randint(-most, most + 1, (count, 2, 1), generator=generator)
    where = (torch.arange(side) + moves).clamp(0, side - 1)
    item, channel = torch.arange(count)[:, None, None, None], torch.arange(3)[:, None, None]
    return pixels[item, channel, where[:, 0, None, :, None], where[:, 1, None, None, :]]
