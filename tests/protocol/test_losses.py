"""The losses: against loops in NumPy, against finite differences, and at work."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.nn.functional import normalize

from protocol.errors import MalformedMessage
from protocol.model.losses import initial_bias, initial_scale, loss_by_name, same_things
from protocol.model.settings import TrainingSettings

NAMES = ("info-nce", "sigmoid", "max-margin", "triplet")
COMPARING = ("info-nce", "max-margin", "triplet")
MARGIN = 0.2

Scores = NDArray[np.float64]
Apart = NDArray[np.bool_]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@dataclass
class Batch:
    """What a loss takes, in float64 so that its arithmetic can be checked closely."""

    images: torch.Tensor
    texts: torch.Tensor
    same: torch.Tensor
    scale: torch.Tensor
    bias: torch.Tensor
    margin: float = MARGIN

    def loss(self, name: str) -> torch.Tensor:
        return loss_by_name(name)(
            self.images, self.texts, self.same, self.scale, self.bias, self.margin
        )


def drawn(seed: int, count: int, extra: int = 0, alike: float = 0.2, spread: float = 1.0) -> Batch:
    """Random unit rows, own pairs nearer than chance, and random pairs of the same thing."""
    rng = np.random.default_rng(seed)
    images = rng.standard_normal((count, 5))
    own = images + spread * rng.standard_normal((count, 5))
    texts = np.concatenate([own, rng.standard_normal((extra, 5))])
    return Batch(
        normalize(torch.from_numpy(images)),
        normalize(torch.from_numpy(texts)),
        torch.from_numpy(rng.random((count, count + extra)) < alike),
        torch.tensor([rng.uniform(-1, 5)], dtype=torch.float64),
        torch.tensor([rng.uniform(-12, 2)], dtype=torch.float64),
        float(rng.uniform(0, 0.8)),
    )


def scored(scores: list[list[float]]) -> Batch:
    """A batch whose similarities are ``scores`` [n, m]."""
    texts = torch.tensor(scores, dtype=torch.float64).T
    count = texts.shape[1]
    zero = torch.zeros(1, dtype=torch.float64)
    same = torch.zeros(count, len(texts), dtype=torch.bool)
    return Batch(torch.eye(count, dtype=torch.float64), texts, same, zero, zero.clone())


# --- what the papers say, in loops


def _rows(scores: Scores, apart: Apart) -> list[tuple[float, list[float]]]:
    """Each image's own score and those of its negatives, then each text's."""
    count, others = scores.shape
    rows = []
    for i in range(count):
        rows.append((scores[i, i], [scores[i, j] for j in range(others) if apart[i, j]]))
    for j in range(count):
        rows.append((scores[j, j], [scores[i, j] for i in range(count) if apart[i, j]]))
    return rows


def _info_nce(scores: Scores, apart: Apart, batch: Batch) -> float:
    steep = min(math.exp(batch.scale.item()), 100.0)
    costs = []
    for own, others in _rows(scores, apart):
        costs.append(math.log(sum(math.exp(steep * (s - own)) for s in [own, *others])))
    return sum(costs) / len(costs)


def _sigmoid(scores: Scores, apart: Apart, batch: Batch) -> float:
    steep, total = min(math.exp(batch.scale.item()), 100.0), 0.0
    for (i, j), score in np.ndenumerate(scores):
        logit = steep * score + batch.bias.item()
        if i == j or apart[i, j]:
            total += math.log1p(math.exp(-logit if i == j else logit))
    return total / len(scores)


def _max_margin(scores: Scores, apart: Apart, batch: Batch) -> float:
    total = 0.0
    for own, others in _rows(scores, apart):
        total += max([0.0, *(batch.margin + other - own for other in others)])
    return total / len(scores)


def _triplet(scores: Scores, apart: Apart, batch: Batch) -> float:
    total = 0.0
    for own, others in _rows(scores, apart):
        semi_hard = [other for other in others if own - batch.margin < other < own]
        for other in sorted(semi_hard or others)[-1:]:
            total += max(0.0, batch.margin + other - own)
    return total / len(scores)


REFERENCES: dict[str, Callable[[Scores, Apart, Batch], float]] = {
    "info-nce": _info_nce,
    "sigmoid": _sigmoid,
    "max-margin": _max_margin,
    "triplet": _triplet,
}


@pytest.mark.parametrize("name", NAMES)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(1, 8),
    extra=st.integers(0, 4),
    alike=st.sampled_from([0.0, 0.2, 0.8, 1.0]),
    spread=st.sampled_from([0.0, 0.3, 1.0, 10.0]),
)
@settings(max_examples=60, deadline=None)
def test_every_loss_is_what_its_paper_says(
    name: str, seed: int, count: int, extra: int, alike: float, spread: float
) -> None:
    batch = drawn(seed, count, extra, alike, spread)
    scores = batch.images.numpy() @ batch.texts.numpy().T
    apart = ~batch.same.numpy() & ~np.eye(*scores.shape, dtype=bool)
    expected = REFERENCES[name](scores, apart, batch)
    assert batch.loss(name).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_values_by_hand() -> None:
    plain = scored([[1.0, 0.0], [0.0, 1.0]])
    assert plain.loss("info-nce").item() == pytest.approx(math.log(1 + math.exp(-1)))
    yes, no = math.log1p(math.exp(-1)), math.log(2)
    assert plain.loss("sigmoid").item() == pytest.approx(yes + no)
    assert plain.loss("max-margin").item() == plain.loss("triplet").item() == 0
    # From image 0: 0.9 is too hard, 0.45 is semi-hard, 0.1 is easy. Every other row is easy.
    mined = scored([[0.5, 0.9, 0.45, 0.1], [0, 2, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    assert mined.loss("max-margin").item() == pytest.approx((0.2 + 0.9 - 0.5) / 4)
    assert mined.loss("triplet").item() == pytest.approx((0.2 + 0.45 - 0.5) / 4)
    # Without a semi-hard one the hardest counts; a score equal to its own is not semi-hard.
    for others, cost in (((0.9, 0.5), 0.6), ((0.5, 0.1), 0.2), ((0.3, 0.1), 0.0)):
        wrong = scored([[0.5, *others], [0, 2, 0], [0, 0, 1]])
        assert wrong.loss("triplet").item() == pytest.approx(cost / 3, abs=1e-12)


# --- symmetry, order, gradients


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_images_and_texts_may_change_places(name: str, seed: int) -> None:
    batch = drawn(seed, 7)
    turned = Batch(batch.texts, batch.images, batch.same.T, batch.scale, batch.bias, batch.margin)
    assert batch.loss(name).item() == pytest.approx(turned.loss(name).item(), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_a_batch_does_not_matter(name: str, seed: int) -> None:
    batch = drawn(seed, 7, 3)
    generator = torch.Generator().manual_seed(seed)
    items = torch.randperm(7, generator=generator)
    texts = torch.cat([items, 7 + torch.randperm(3, generator=generator)])
    mixed = Batch(
        batch.images[items],
        batch.texts[texts],
        batch.same[items][:, texts],
        batch.scale,
        batch.bias,
        batch.margin,
    )
    assert batch.loss(name).item() == pytest.approx(mixed.loss(name).item(), rel=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("seed", "extra"), [(0, 0), (1, 0), (2, 3), (3, 3)])
def test_gradients_are_those_of_finite_differences(name: str, seed: int, extra: int) -> None:
    batch = drawn(seed, 6, extra)
    batch.scale.clamp_(max=4.0)  # away from its bound, where the gradient is one-sided
    inputs = [batch.images, batch.texts, batch.scale, batch.bias]

    def loss(
        images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        return Batch(images, texts, batch.same, scale, bias, 0.5).loss(name)

    assert torch.autograd.gradcheck(loss, [value.requires_grad_() for value in inputs])
    assert loss(*inputs).item() > 0


@pytest.mark.parametrize("name", NAMES)
def test_an_item_without_negatives_costs_nothing(name: str) -> None:
    for batch in (drawn(0, 1), drawn(0, 5, 2, alike=1.0)):
        batch.images.requires_grad_()
        batch.texts.requires_grad_()
        loss = batch.loss(name)
        loss.backward()
        for value in (batch.images, batch.texts):
            assert value.grad is not None and bool(value.grad.isfinite().all())
        if name in COMPARING:
            assert loss.item() == 0
            assert batch.images.grad is not None and not batch.images.grad.any()
            assert batch.texts.grad is not None and not batch.texts.grad.any()
        else:
            own = (batch.images * batch.texts[: len(batch.images)]).sum(1)
            logits = batch.scale.exp().clamp(max=100) * own + batch.bias
            assert loss.item() == pytest.approx(-logits.sigmoid().log().mean().item())


@pytest.mark.parametrize("name", NAMES)
def test_the_same_thing_is_not_pushed_apart(name: str) -> None:
    rows = normalize(torch.tensor([[1.0, 0], [1, 0], [0, 1]], dtype=torch.float64))
    same = same_things(torch.tensor([[0, 1], [1, -1], [2, -1]]), torch.full((3,), -1))
    scale, bias = (torch.tensor([value], dtype=torch.float64) for value in (math.log(50), -25))
    found = Batch(rows, rows, same, scale, bias).loss(name)
    assert found < 1e-6
    assert Batch(rows, rows, torch.eye(3).bool(), scale, bias).loss(name) > found + 0.1


@pytest.mark.parametrize("name", NAMES)
def test_extra_texts_are_negatives_of_images_alone(name: str) -> None:
    batch, alone, kept, near = (drawn(3, 6, 4, alike=0.0) for _ in range(4))
    alone.same[:, 6:] = True
    kept.texts, kept.same = kept.texts[:6], kept.same[:, :6]
    near.texts[6] = near.images[0]
    assert alone.loss(name).item() == pytest.approx(kept.loss(name).item(), rel=1e-12)
    assert near.loss(name) != batch.loss(name) != kept.loss(name)
    if name != "triplet":  # there a too hard negative gives way to a semi-hard one
        assert near.loss(name) > batch.loss(name) > kept.loss(name)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_not_finite_does_not_hide(name: str) -> None:
    batch = drawn(0, 4)
    batch.images[2, 1] = torch.nan
    assert not math.isfinite(batch.loss(name).item())


@pytest.mark.parametrize("name", NAMES)
def test_wrong_shapes_are_refused(name: str) -> None:
    batch = drawn(0, 4, 1)
    for count, others, same in (
        (4, 3, batch.same[:, :3]),
        (4, 5, batch.same[:1]),
        (4, 5, batch.same[:, :4]),
        (0, 5, batch.same[:0]),
    ):
        wrong = Batch(
            batch.images[:count], batch.texts[:others], same, batch.scale, batch.bias, MARGIN
        )
        with pytest.raises(ValueError, match="same as"):
            wrong.loss(name)


# --- temperature and bias


@pytest.mark.parametrize("name", ["info-nce", "sigmoid"])
def test_the_temperature_is_bounded_but_never_stuck(name: str) -> None:
    bound = initial_scale("info-nce", 0.01)
    good, bad = scored([[1.0, -1.0], [-1.0, 1.0]]), scored([[-0.1, 0.1], [0.1, -0.1]])
    for start in (bound, 50.0):
        slopes = []
        for batch in (good, bad):
            batch.scale = torch.tensor([start], dtype=torch.float32).requires_grad_()
            batch.images, batch.texts = batch.images.float(), batch.texts.float()
            loss = batch.loss(name)
            batch.scale.grad = None
            loss.backward()
            assert batch.scale.grad is not None
            slopes.append(batch.scale.grad.item())
            batch.scale = torch.tensor([bound], dtype=torch.float32)
            assert batch.loss(name).item() == pytest.approx(loss.item(), rel=1e-6)
        assert slopes[0] == 0, "it would go further up"
        assert slopes[1] > 0, "it may come down"


def test_starts_are_those_of_the_papers() -> None:
    for name in NAMES:
        sigmoid = name == "sigmoid"
        assert initial_scale(name, 0.07) == pytest.approx(math.log(10 if sigmoid else 1 / 0.07))
        assert initial_bias(name) == (-10 if sigmoid else 0)


def test_a_loss_has_the_name_that_the_settings_know() -> None:
    for name in NAMES:
        assert callable(loss_by_name(TrainingSettings(loss=name).loss))
    for name in ("info_nce", "", "__class__"):
        with pytest.raises(MalformedMessage, match="expected one of info-nce"):
            loss_by_name(name)
        with pytest.raises(MalformedMessage):
            TrainingSettings(loss=name)


# --- at work


@pytest.mark.parametrize("name", NAMES)
def test_a_model_learns_by_it(name: str) -> None:
    """Two linear towers over two mixtures of the same hidden causes, tried on unseen items."""
    generator = torch.Generator().manual_seed(0)
    causes = torch.randn(400, 8, generator=generator)
    seen = causes @ torch.randn(8, 24, generator=generator)
    said = causes @ torch.randn(8, 20, generator=generator)
    seen, said = (value + torch.randn(value.shape, generator=generator) for value in (seen, said))
    image, text = (
        (torch.randn(width, 8, generator=generator) / width**0.5).requires_grad_()
        for width in (24, 20)
    )
    scale = torch.tensor([initial_scale(name, 0.07)]).requires_grad_()
    bias = torch.tensor([initial_bias(name)]).requires_grad_()
    optimiser = torch.optim.Adam([image, text, scale, bias], lr=0.02)
    same = torch.zeros(32, 32, dtype=torch.bool)

    def recall() -> float:
        with torch.no_grad():
            scores = normalize(seen[300:] @ image) @ normalize(said[300:] @ text).T
        return (scores.argmax(1) == torch.arange(100)).float().mean().item()

    before = recall()
    for _ in range(150):
        chosen = torch.randperm(300, generator=generator)[:32]
        images, texts = normalize(seen[chosen] @ image), normalize(said[chosen] @ text)
        loss = loss_by_name(name)(images, texts, same, scale, bias, MARGIN)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert before < 0.1 and recall() > 0.4
    learnt = [value.grad is not None for value in (scale, bias)]
    assert learnt == {"info-nce": [True, False], "sigmoid": [True, True]}.get(name, [False, False])


# --- same things


@given(
    st.lists(
        st.tuples(
            st.lists(st.integers(0, 6), max_size=4),
            st.integers(-1, 3) | st.sampled_from([2**62, 2**63 - 1]),
        ),
        max_size=9,
    )
)
def test_items_that_share_a_caption_or_a_group_are_the_same(
    items: list[tuple[list[int], int]],
) -> None:
    numbers = torch.full((len(items), 4), -1)
    for row, (captions, _) in zip(numbers, items, strict=True):
        row[: len(captions)] = torch.tensor(captions, dtype=torch.int64)
    found = same_things(numbers, torch.tensor([group for _, group in items], dtype=torch.int64))
    for i, (captions, group) in enumerate(items):
        for j, (others, other) in enumerate(items):
            expected = i == j or bool({*captions} & {*others}) or (group == other >= 0)
            assert found[i, j].item() == expected
    assert found.shape == (len(items), len(items)) and found.dtype == torch.bool


def test_captions_are_not_groups() -> None:
    numbers, groups = torch.tensor([[5], [6], [7]]), torch.tensor([6, 5, -1])
    assert torch.equal(same_things(numbers, groups), torch.eye(3).bool())


def test_same_things_of_wrong_shapes_are_refused() -> None:
    for shape, groups in (((3, 2), 2), ((3,), 3)):
        with pytest.raises(ValueError, match="numbers"):
            same_things(torch.zeros(shape, dtype=torch.int64), torch.zeros(groups))
