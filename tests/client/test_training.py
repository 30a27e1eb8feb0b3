"""Training on one institution: it learns, it repeats to the bit, it says no."""

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.institution.augmentation.image import ImageAugmentation
from client.institution.evaluation import chance, relevance, retrieve
from client.institution.training import (
    BETAS,
    SETTLING_BATCHES,
    _batches,
    interrupted,
    rate,
    train_epochs,
)
from client.institution.training_set import Captions, FeatureSet, PictureSet, TrainingSet, union
from protocol.errors import TrainingError
from protocol.model.losses import loss_by_name
from protocol.model.pretrained import Pretrained
from protocol.model.settings import TrainingSettings
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers
from protocol.model.update import arrays_of

TINY = TowerSettings(
    image_size=16, dim=16, image_width=16, image_stages=1, text_width=16, buckets=256, max_tokens=8
)
SETTINGS = TrainingSettings(batch_size=16, learning_rate=5e-3, towers=TINY)
COLOURS = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220), "grey": (99,) * 3}
PLACES = {"top left": (0, 0), "top right": (0, 8), "bottom left": (8, 0), "bottom right": (8, 8)}


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def squares(count: int, seed: int) -> PictureSet:
    """A coloured square in one of four corners, with a caption that says so."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(230, 256, (count, 3, 16, 16), dtype=np.uint8)
    captions = []
    for index in range(count):
        colour, place = rng.choice(list(COLOURS)), rng.choice(list(PLACES))
        row, column = PLACES[place]
        pixels[index, :, row : row + 8, column : column + 8] = np.array(COLOURS[colour])[
            :, None, None
        ]
        captions.append((f"a {colour} square in the {place}",))
    return PictureSet(pixels, Captions(tuple(captions)))


def _train(
    data: TrainingSet, seed: int, epochs: int = 1, settings: TrainingSettings = SETTINGS
) -> tuple[TwoTowers, float]:
    model = Pretrained(TINY, {}, "").start(settings)
    loss = train_epochs(model, data, settings, torch.Generator().manual_seed(seed), epochs)
    return model, loss


def _bits(model: TwoTowers) -> bytes:
    return b"".join(values.tobytes() for values in arrays_of(model).values())


@pytest.mark.parametrize("loss", ["info-nce", "sigmoid", "max-margin", "triplet"])
def test_loss_goes_down_and_recall_beats_chance(loss: str) -> None:
    data, test = squares(96, 0), squares(48, 1)
    settings = replace(SETTINGS, loss=loss)
    _, first = _train(data, 1, 1, settings)
    model, last = _train(data, 1, 12, settings)
    assert last < 0.8 * first
    queries, relevant = relevance(test.captions.of_items)
    found = retrieve(test.text_vectors(model, queries), test.image_vectors(model), relevant)
    guess = chance(len(test), [len(images) for images in relevant])
    assert found.recall_at_1 > 2 * guess.recall_at_1
    assert found.median_rank < guess.median_rank


def test_the_same_seed_gives_the_same_bits_and_leaves_the_process_alone() -> None:
    data = squares(40, 0)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    assert _bits(_train(data, 3)[0]) == _bits(_train(data, 3)[0]) != _bits(_train(data, 4)[0])
    assert torch.equal(before, torch.random.get_rng_state())
    smallest = sys.float_info.min
    assert smallest / 2 > 0, "denormal numbers are numbers again"


def test_every_item_is_seen_once_an_epoch_in_even_batches() -> None:
    parts = list(_batches(33, 3, 2, torch.Generator().manual_seed(0)))
    assert [len(part) for part in parts] == [11] * 6
    assert sorted(torch.cat(parts[:3]).tolist()) == list(range(33))
    assert not list(_batches(1, 1, 1, torch.Generator()))


def test_shift_moves_and_neither_flips_nor_recolours() -> None:
    pixels = torch.arange(32 * 32, dtype=torch.int32).remainder(251).to(torch.uint8)
    pixels = pixels.reshape(1, 1, 32, 32).repeat(40, 3, 1, 1)
    moved = ImageAugmentation("shift")(pixels, torch.Generator().manual_seed(0))
    centre = moved[:, :, 2:-2, 2:-2]
    windows = [
        pixels[0, :, 2 + y : 30 + y, 2 + x : 30 + x] for y in range(-2, 3) for x in range(-2, 3)
    ]
    for picture in centre:
        assert any(torch.equal(picture, window) for window in windows)
    assert len({picture.numpy().tobytes() for picture in moved}) > 5


def test_rate_warms_up_and_falls_to_nothing() -> None:
    assert rate(0) == 0 and rate(1) == pytest.approx(0)
    assert rate(0.025) < rate(0.05) > rate(0.5) == pytest.approx(0.5)


def test_every_schedule_warms_up_and_only_the_constant_one_does_not_fall() -> None:
    for schedule in ("cosine", "linear", "constant"):
        assert rate(0.025, schedule) == pytest.approx(0.5 * rate(0.05, schedule), rel=0.05)
    assert rate(0.75, "linear") == pytest.approx(0.25) and rate(1, "linear") == 0
    assert rate(0.75, "constant") == rate(1, "constant") == 1
    assert rate(0.25) == pytest.approx((1 + 2**-0.5) / 2)


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_schedule_is_that_of_the_whole_run(schedule: str) -> None:
    """The end of a run moves the model less than its middle, save where the rate is constant."""
    data, settings = squares(40, 0), replace(SETTINGS, schedule=schedule)
    moved = []
    for span in ((0.4, 0.41), (0.99, 1.0)):
        model = Pretrained(TINY, {}, "").start(settings)
        before = model.image_head.linear.weight.detach().clone()
        train_epochs(model, data, settings, torch.Generator().manual_seed(0), 2, span)
        moved.append(float((model.image_head.linear.weight.detach() - before).abs().mean()))
    middle, end = moved
    assert end == pytest.approx(middle) if schedule == "constant" else end < 0.1 * middle


def test_captions_are_numbered_across_items() -> None:
    captions = Captions((("A cat", "pet"), ("a cat ",)), public=("PET", "a dog"))
    texts, numbers, public = captions.numbered()
    assert [text.lower().strip() for text in texts] == ["a cat", "pet", "a dog"]
    assert numbers.tolist() == [[0, 1], [0, -1]] and public.tolist() == [1, 2]


def _features(
    captions: tuple[str, ...],
    groups: tuple[str | None, ...] = (),
    public: tuple[str, ...] = (),
    seed: int = 0,
) -> FeatureSet:
    """Random features, as wide as the tiny encoders'."""
    said = Captions(tuple((text,) for text in captions), groups, public)
    model, rng = TwoTowers.initial(TINY, 0), np.random.default_rng(seed)
    images = rng.standard_normal((len(captions), 1, model.image.width)).astype(np.float32)
    texts = rng.standard_normal((len(said.numbered()[0]), model.text.width)).astype(np.float32)
    return FeatureSet(images, texts, said)


HEADS = replace(SETTINGS, train="heads")


@pytest.mark.parametrize("loss", ["info-nce", "max-margin", "triplet"])
def test_items_of_one_thing_are_never_negatives(loss: str) -> None:
    settings = replace(HEADS, loss=loss)
    apart, alike = ("a", "b", "c", "d"), ("a cat", "A cat", " a cat", "a cat ")
    assert _train(_features(apart), 0, 1, settings)[1] > 0.05
    assert _train(_features(apart, (None,) * 4), 0, 1, settings)[1] > 0.05
    assert _train(_features(apart, ("patient",) * 4), 0, 1, settings)[1] == 0
    assert _train(_features(alike), 0, 1, settings)[1] == 0
    some = _train(_features(apart, ("x", "x", "y", None)), 0, 1, settings)[1]
    everything = _train(_features(apart), 0, 1, settings)[1]
    # Triplet picks one negative, and not the hardest: without it the next may cost more.
    assert some > 0 and (some < everything or loss == "triplet") and some != everything


@pytest.mark.parametrize("loss", ["info-nce", "max-margin", "triplet"])
def test_public_captions_are_negatives_unless_they_are_the_own_one(loss: str) -> None:
    settings = replace(HEADS, loss=loss, public_negatives=3, margin=2.0)
    alike = ("a cat", "a cat", "a cat")
    assert _train(_features(alike), 0, 1, settings)[1] == 0, "there are none"
    assert _train(_features(alike, public=("A Cat ",)), 0, 1, settings)[1] == 0
    other = _features(alike, public=("a dog",))
    assert _train(other, 0, 1, settings)[1] > 0.01
    assert _train(other, 0, 1, replace(settings, public_negatives=0))[1] == 0


@pytest.mark.parametrize("loss", ["info-nce", "sigmoid", "max-margin", "triplet"])
def test_chunks_change_nothing_but_memory(loss: str) -> None:
    data = squares(40, 0)
    public = Captions(data.captions.of_items, public=("a dog", "a cat", "rain"))
    data = PictureSet(data._pixels, public)
    settings = replace(SETTINGS, loss=loss, public_negatives=5, margin=0.3)
    whole, at_once = _train(data, 2, 2, settings)
    chunked, in_chunks = _train(data, 2, 2, replace(settings, chunk_size=3))
    start = Pretrained(TINY, {}, "").start(settings)
    assert in_chunks == pytest.approx(at_once, rel=1e-4)
    seen = [data.image_vectors(model) for model in (whole, chunked, start)]
    np.testing.assert_allclose(seen[1], seen[0], atol=2e-3)
    assert np.abs(seen[2] - seen[0]).max() > 0.05


def _by_hand(data: FeatureSet, settings: TrainingSettings, steps: int) -> TwoTowers:
    """Full batches, with the proximal term in the objective and its gradient by autograd."""
    model = Pretrained(TINY, {}, "").start(settings)
    items = torch.arange(len(data))
    learned = [value for value in model.parameters() if value.requires_grad]
    start = [value.detach().clone() for value in learned]
    matrices = [value for value in learned if value.ndim > 1]
    others = [value for value in learned if value.ndim <= 1]
    optimiser = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": settings.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ],
        betas=BETAS,
    )
    for step in range(steps):
        for group in optimiser.param_groups:
            now = rate((step + 0.5) / steps) * (step + 1) / SETTLING_BATCHES
            group["lr"] = settings.learning_rate * now
        images = model.project_image(data._images[items, 0])
        texts = model.project_text(data._texts[data.numbers[items, 0]])
        value = loss_by_name(settings.loss)(
            images, texts, torch.eye(len(data)).bool(), model.logit_scale, model.logit_bias, 0.2
        )
        far = sum(((now - then) ** 2).sum() for now, then in zip(learned, start, strict=True))
        optimiser.zero_grad()
        (value + settings.proximal / 2 * far).backward()
        torch.nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
    return model


def test_fedprox_has_the_gradient_of_its_term_and_pulls_towards_the_start() -> None:
    # One batch an epoch: then the order of its items decides nothing.
    data = _features(tuple("abcdefgh"))
    settings = replace(HEADS, proximal=3.0)
    start = Pretrained(TINY, {}, "").start(settings)
    found, _ = _train(data, 0, 20, settings)
    free, _ = _train(data, 0, 20, replace(settings, proximal=0.0))
    expected = arrays_of(_by_hand(data, settings, 20))
    for name, values in arrays_of(found).items():
        np.testing.assert_allclose(values, expected[name], atol=1e-4)
    assert any(
        np.abs(values - expected[name]).max() > 1e-3 for name, values in arrays_of(free).items()
    )

    def distance(model: TwoTowers) -> float:
        before = arrays_of(start)
        return sum(float(((v - before[n]) ** 2).sum()) for n, v in arrays_of(model).items())

    firm, _ = _train(data, 0, 20, replace(settings, proximal=100.0))
    assert 0 < distance(firm) < distance(found) < distance(free)


def test_a_union_keeps_items_apart_that_only_share_a_groups_name() -> None:
    first = _features(("a", "b"), ("1", "1"), ("rain",))
    second = _features(("a ", "c"), ("1", None), ("snow",), seed=1)
    both = union([first, second])
    assert len(both) == 4 and both.numbers[:, 0].tolist() == [0, 1, 0, 2]
    groups = both.groups.tolist()
    assert groups[0] == groups[1] and len(set(groups[1:])) == 3 and groups[3] == -1
    assert both.captions.public == ("rain",)
    model = TwoTowers.initial(TINY, 0)
    np.testing.assert_allclose(
        both.image_vectors(model),
        np.concatenate([first.image_vectors(model), second.image_vectors(model)]),
        atol=1e-6,
    )
    np.testing.assert_allclose(
        both.text_vectors(model, ["B", "c"]),
        np.concatenate([first.text_vectors(model, ["b"]), second.text_vectors(model, ["c"])]),
        atol=1e-6,
    )


def test_a_loss_that_is_not_finite_ends_training() -> None:
    model = TwoTowers.initial(TINY, 0)
    with torch.no_grad():
        model.image_head.linear.weight.fill_(torch.nan)
    with pytest.raises(TrainingError, match="finite"):
        train_epochs(model, squares(8, 0), SETTINGS, torch.Generator(), 1)


def test_one_pair_or_an_interrupt_ends_training() -> None:
    with pytest.raises(TrainingError, match="fewer than two"):
        _train(squares(1, 0), 0)
    interrupted.set()
    try:
        with pytest.raises(TrainingError, match="interrupted"):
            _train(squares(8, 0), 0)
    finally:
        interrupted.clear()


def test_watch_is_told_of_every_batch() -> None:
    seen: list[float] = []
    train_epochs(
        TwoTowers.initial(TINY, 0),
        squares(20, 0),
        replace(SETTINGS, batch_size=10),
        torch.Generator(),
        2,
        watch=seen.append,
    )
    assert seen == [0.25, 0.5, 0.75, 1.0]
