"""The benchmark of towers: PyTorch as it comes, ONNX Runtime, and ONNX Runtime in eight bits.

All run the same backbones over the same pictures and captions in one process, turn by turn, so
that a busy neighbour slows down each of them. The fastest turn of each counts.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from client.institution.images import load_pixels
from client.institution.pairs import Pair, PairFolder, read_pairs
from protocol.errors import DataError
from protocol.model.pretrained import EncoderChoice, Pretrained
from protocol.model.runtime.tower import OnnxTower
from protocol.model.towers import TwoTowers
from protocol.terminal import Outcome

_BATCHES = {"image": 64, "text": 256}
_CALIBRATION = 64
_K = 10

Array = npt.NDArray[Any]
Arrays = tuple[Array, ...]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Task:
    """One side of the model: its module, inputs in batches, and what int8 is calibrated on."""

    module: nn.Module
    batches: Sequence[Arrays]
    calibration: Sequence[Arrays]

    @property
    def example(self) -> tuple[torch.Tensor, ...]:
        return tuple(torch.from_numpy(array[:2]) for array in self.batches[0])

    @property
    def items(self) -> int:
        return sum(len(batch[0]) for batch in self.batches)

    def eager(self, *batch: Array) -> Floats:
        """PyTorch, the whole batch at once."""
        with torch.inference_mode():
            vectors: Floats = self.module(*map(torch.from_numpy, batch)).numpy()
        return vectors


def bench_towers(
    choice: EncoderChoice,
    data: Path,
    images: int = 128,
    texts: int = 1024,
    threads: int = 1,
    rounds: int = 3,
) -> Outcome:
    """Measure the backbones of ``choice`` on the test split of ``data``.

    int8 is calibrated on training pictures. Raises :class:`BlindsightError` for encoders or data
    that cannot be used.
    """
    model = Pretrained.load(choice).model(seed=0)
    folder = read_pairs(data)
    found: dict[str, Any] = {}
    with _threads(threads):
        seen, groups = _texts(model, folder, texts)
        for side, task in (("image", _images(model, folder, images)), ("text", seen)):
            found[side] = _measure(task, threads, rounds, groups if side == "text" else None)
    settings = {"images": images, "texts": texts, "threads": threads, "rounds": rounds}
    return Outcome(_render(found, threads), found | {"settings": settings})


def _measure(
    task: _Task, threads: int, rounds: int, groups: Array | None
) -> dict[str, dict[str, float]]:
    onnx = OnnxTower.export(task.module, task.example, "float32", threads)
    int8 = OnnxTower.export(task.module, task.example, "int8", threads, task.calibration)
    engines: dict[str, Callable[..., Floats]] = {"eager": task.eager, "onnx": onnx, "int8": int8}
    weights = sum(tensor.nbytes for tensor in task.module.parameters())
    sizes = {"eager": weights, "onnx": onnx.size_bytes, "int8": int8.size_bytes}
    vectors = {
        name: np.concatenate([engine(*batch) for batch in task.batches])
        for name, engine in engines.items()
    }
    seconds = dict.fromkeys(engines, float("inf"))
    for _ in range(rounds):
        for name, engine in engines.items():
            since = time.perf_counter()
            for batch in task.batches:
                engine(*batch)
            seconds[name] = min(seconds[name], time.perf_counter() - since)
    found: dict[str, dict[str, float]] = {}
    for name in engines:
        cosines = (_unit(vectors[name]) * _unit(vectors["eager"])).sum(1)
        found[name] = {
            "items_per_second": task.items / seconds[name],
            "over_eager": seconds["eager"] / seconds[name],
            "size_bytes": sizes[name],
            "max_difference": float(np.abs(vectors[name] - vectors["eager"]).max()),
            "cosine": float(cosines.mean()),
            "min_cosine": float(cosines.min()),
        }
        if groups is not None:
            found[name]["recall_at_10"] = _recall(_unit(vectors[name]), groups)
    return found


def _images(model: TwoTowers, folder: PairFolder, count: int) -> _Task:
    settings, size = model.settings, _BATCHES["image"]

    def read(split: str, most: int) -> Array:
        pixels, _, _ = load_pixels(
            folder,
            folder.split(split)[:most],
            settings.image_size,
            settings.image_crop or None,
            settings.image_resample,
        )
        return pixels

    pixels, calibration = read("test", count), read("train", _CALIBRATION)
    if len(pixels) < 2 or len(calibration) < 2:
        raise DataError(
            f"{folder.root}: expected two pictures or more to train and two to test on, got "
            f"{len(calibration)} and {len(pixels)}",
            "Choose a folder with more pictures.",
        )
    module = _Features(model, model.image, model.image_features)
    return _Task(module, _cut((pixels,), size), _cut((calibration,), 8))


def _texts(model: TwoTowers, folder: PairFolder, count: int) -> tuple[_Task, Array]:
    """The captions, and for each the number of its picture."""
    pairs: Sequence[Pair] = folder.split("test")
    named = [(text, place) for place, pair in enumerate(pairs) for text in pair.captions][:count]
    if len(named) < 2:
        raise DataError(
            f"{folder.root}: expected two captions or more to test on, got {len(named)}",
            "Choose a folder whose test split has captions.",
        )
    size = _BATCHES["text"]
    batches: list[Arrays] = []
    for start in range(0, len(named), size):
        ids, mask = model.tokenizer([text for text, _ in named[start : start + size]])
        batches.append((ids.numpy(), mask.numpy()))
    module = _Features(model, model.text, model.text_features)
    return _Task(module, batches, []), np.array([place for _, place in named])


class _Features(nn.Module):
    """One method of the model as a module that holds that method's weights alone."""

    def __init__(
        self, model: TwoTowers, backbone: nn.Module, method: Callable[..., torch.Tensor]
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self._method = method

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self._method(*inputs)


def _cut(arrays: Arrays, size: int) -> list[Arrays]:
    starts = range(0, len(arrays[0]), size)
    return [tuple(array[start : start + size] for array in arrays) for start in starts]


def _unit(vectors: Floats) -> Floats:
    unit: Floats = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _recall(unit: Floats, groups: Array) -> float:
    """The share of captions that find another of their picture among the first ten."""
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    best = np.argsort(-scores, axis=1)[:, :_K]
    return float((groups[best] == groups[:, None]).any(axis=1).mean())


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _render(found: dict[str, dict[str, dict[str, float]]], threads: int) -> str:
    lines = [
        f"{'threads: ' + str(threads):16}items/s  over eager    size MB  largest diff   cosine"
    ]
    lines += [
        f"{side + ', ' + name:14}{row['items_per_second']:9.1f}{row['over_eager']:12.2f}"
        f"{row['size_bytes'] / 1e6:11.1f}{row['max_difference']:14.1e}{row['cosine']:9.5f}"
        for side, rows in found.items()
        for name, row in rows.items()
    ]
    return "\n".join(lines)
