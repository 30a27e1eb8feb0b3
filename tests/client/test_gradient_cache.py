"""Chunks give what the whole batch gives, on the memory of a chunk."""

import weakref
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import normalize

from client.institution.gradient_cache import backward
from protocol.errors import TrainingError
from protocol.model.losses import loss_by_name
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers

NAMES = ("info-nce", "sigmoid", "max-margin", "triplet")
COUNT, EXTRA = 11, 3
Encoder = Callable[[], torch.Tensor]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Towers(nn.Module):
    """Two small towers with one layer in common, and what the losses learn."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.image, self.text, self.common = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 5)
        self.scale = nn.Parameter(torch.full((1,), 1.5))
        self.bias = nn.Parameter(torch.full((1,), -2.0))
        for value in self.parameters():
            value.data += 0.3 * torch.randn(value.shape, generator=generator)
        self.pixels = torch.randn(COUNT, 6, generator=generator).to(dtype)
        self.words = torch.randn(COUNT + EXTRA, 4, generator=generator).to(dtype)
        self.same = torch.rand(COUNT, COUNT + EXTRA, generator=generator) < 0.1
        self.to(dtype)

    def images(self, part: slice) -> torch.Tensor:
        return normalize(self.common(self.image(self.pixels[part]).tanh()))

    def texts(self, part: slice) -> torch.Tensor:
        return normalize(self.common(self.text(self.words[part]).tanh()))

    def loss(self, name: str) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        chosen = loss_by_name(name)
        return lambda images, texts: chosen(images, texts, self.same, self.scale, self.bias, 0.4)

    def gradients(self) -> list[torch.Tensor | None]:
        found = [value.grad for value in self.parameters()]
        self.zero_grad()
        return found


def cut(encode: Callable[[slice], torch.Tensor], sizes: Sequence[int]) -> list[Encoder]:
    chunks: list[Encoder] = []
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        chunks.append(lambda part=part: encode(part))
        start += size
    return chunks


def even(count: int, size: int) -> list[int]:
    return [min(size, count - start) for start in range(0, count, size)]


def _plain(towers: Towers, name: str) -> tuple[torch.Tensor, list[torch.Tensor | None]]:
    whole = slice(None)
    value = towers.loss(name)(towers.images(whole), towers.texts(whole))
    value.backward()
    return value.detach(), towers.gradients()


def _agree(towers: Towers, name: str, images: list[int], texts: list[int]) -> None:
    expected, gradients = _plain(towers, name)
    value = backward(cut(towers.images, images), cut(towers.texts, texts), towers.loss(name))
    assert not value.requires_grad and value.item() > 0
    torch.testing.assert_close(value, expected)
    for found, wanted in zip(towers.gradients(), gradients, strict=True):
        assert (found is None) == (wanted is None)
        if found is not None and wanted is not None:
            torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [1, 2, 3, 5, 11, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_chunks_give_the_loss_and_the_gradients_of_the_whole(
    name: str, size: int, dtype: torch.dtype
) -> None:
    _agree(Towers(dtype), name, even(COUNT, size), even(COUNT + EXTRA, size))


@pytest.mark.parametrize("name", NAMES)
@given(
    images=st.lists(st.integers(0, 6), max_size=6),
    texts=st.lists(st.integers(0, 6), max_size=6),
)
@settings(max_examples=30, deadline=None)
def test_chunks_may_be_uneven(name: str, images: list[int], texts: list[int]) -> None:
    parts = []
    for sizes, count in ((images, COUNT), (texts, COUNT + EXTRA)):
        while sum(sizes) > count:
            sizes = sizes[1:]
        parts.append([*sizes, count - sum(sizes)])
    _agree(Towers(), name, *parts)


@pytest.mark.parametrize("name", NAMES)
def test_the_real_towers_agree(name: str) -> None:
    shape = TowerSettings(
        image_size=16, dim=16, image_width=16, image_stages=1, text_width=16, buckets=64
    )
    model = TwoTowers.initial(shape, 0)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (10, 3, 16, 16), generator=generator, dtype=torch.uint8)
    ids, mask = model.tokenizer([f"number {index} of many"[: 9 + index] for index in range(10)])
    same, bias = torch.zeros(10, 10, dtype=torch.bool), torch.tensor([-1.0])

    def loss(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        return loss_by_name(name)(images, texts, same, model.logit_scale, bias, 0.2)

    results = []
    for sizes in ([10], [4, 4, 2]):
        model.zero_grad()
        value = backward(
            cut(lambda part: model.encode_image(pixels[part]), sizes),
            cut(lambda part: model.encode_text(ids[part], mask[part]), sizes),
            loss,
        )
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        results.append((value, [gradient.clone() for gradient in gradients]))
    (value, whole), (other, parts) = results
    assert value.item() == pytest.approx(other.item(), rel=1e-5)
    assert len(whole) == len(parts) > 20
    for one, two in zip(whole, parts, strict=True):
        assert (one - two).norm() <= 1e-4 * one.norm() + 1e-6


def test_gradients_are_added_and_the_loss_is_asked_once() -> None:
    towers = Towers()
    _, expected = _plain(towers, "sigmoid")
    asked = []

    def loss(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        asked.append((len(images), len(texts)))
        return towers.loss("sigmoid")(images, texts)

    for _ in range(2):
        backward(cut(towers.images, [6, 5]), cut(towers.texts, [14]), loss)
    assert asked == [(COUNT, COUNT + EXTRA)] * 2
    for found, wanted in zip(towers.gradients(), expected, strict=True):
        assert found is not None and wanted is not None
        torch.testing.assert_close(found, 2 * wanted)


@pytest.mark.parametrize(("sizes", "calls"), [([11], 1), ([6, 5], 2)])
def test_a_chunk_is_embedded_no_more_than_twice(sizes: list[int], calls: int) -> None:
    towers = Towers()
    seen = []

    def images(part: slice) -> torch.Tensor:
        seen.append(torch.is_grad_enabled())
        return towers.images(part)

    backward(cut(images, sizes), cut(towers.texts, [14]), towers.loss("info-nce"))
    assert seen == [True] if calls == 1 else [False, False, True, True]


def test_embeddings_that_need_no_gradient_are_left_alone() -> None:
    towers = Towers()
    public = normalize(torch.randn(EXTRA, 5, dtype=torch.float64))
    before = public.clone()
    own = cut(towers.texts, [6, 5])
    backward(cut(towers.images, [6, 5]), [*own, lambda: public], towers.loss("info-nce"))
    assert torch.equal(public, before) and not public.requires_grad and public.grad is None
    found = towers.gradients()
    value = towers.loss("info-nce")(
        towers.images(slice(None)), torch.cat([towers.texts(slice(0, COUNT)), public])
    )
    value.backward()
    for one, two in zip(found, towers.gradients(), strict=True):
        assert (one is None) == (two is None)
        if one is not None and two is not None:
            torch.testing.assert_close(one, two)


def test_a_chunk_that_comes_out_otherwise_is_refused() -> None:
    towers = Towers()
    generator = torch.Generator().manual_seed(0)

    def dropped(part: slice) -> torch.Tensor:
        kept = torch.rand(towers.pixels[part].shape, generator=generator) > 0.1
        return normalize(towers.common(towers.image(towers.pixels[part] * kept).tanh()))

    for sizes in ([6, 5], [4, 4, 3]):
        with pytest.raises(TrainingError, match="twice"):
            backward(cut(dropped, sizes), cut(towers.texts, [14]), towers.loss("info-nce"))
    with pytest.raises(ValueError, match="chunks"):
        backward([], cut(towers.texts, [14]), towers.loss("info-nce"))


def test_memory_follows_the_chunk_and_not_the_batch() -> None:
    """Counts the bytes that the encoders keep for the way back, at their most."""
    width = 256
    layers = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(6)))

    def most(count: int, sizes: list[int]) -> int:
        data = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
        same = torch.zeros(count, count, dtype=torch.bool)
        scale, bias = torch.zeros(1), torch.zeros(1)
        held = peak = 0

        def encode(part: slice) -> torch.Tensor:
            rows: torch.Tensor = layers(data[part])
            return normalize(rows)

        def release(size: int) -> None:
            nonlocal held
            held -= size

        def keep(value: torch.Tensor) -> torch.Tensor:
            nonlocal held, peak
            if value.shape[1:] != (width,) or value.data_ptr() in weights:
                return value
            copy = value.detach().clone()
            held += copy.nbytes
            peak = max(peak, held)
            weakref.finalize(copy, release, copy.nbytes)
            return copy

        weights = {value.data_ptr() for value in layers.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            backward(
                cut(encode, sizes),
                cut(encode, sizes),
                lambda images, texts: loss_by_name("info-nce")(
                    images, texts, same, scale, bias, 0.0
                ),
            )
        assert held == 0
        return peak

    small, large = most(32, [8] * 4), most(128, [8] * 16)
    assert large <= 1.5 * small + 2 * 128 * width * 4 * 2, "only embeddings follow the batch"
    assert most(128, [128]) > 8 * large
