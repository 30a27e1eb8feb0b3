"""Training on one institution: it learns, it repeats to the bit, it says no."""

import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.institution.evaluation import chance, measure, relevance
from client.institution.training import (
    TrainingSet,
    _batches,
    _shift,
    interrupted,
    rate,
    train_epochs,
)
from protocol.errors import TrainingError
from protocol.model.embedder import Embedder
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


def squares(count: int, seed: int) -> TrainingSet:
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
    return TrainingSet(pixels, tuple(captions))


def _train(data: TrainingSet, seed: int, epochs: int = 1) -> tuple[TwoTowers, float]:
    model = TwoTowers.initial(TINY, 0)
    loss = train_epochs(model, data, SETTINGS, torch.Generator().manual_seed(seed), epochs)
    return model, loss


def _bits(model: TwoTowers) -> bytes:
    return b"".join(values.tobytes() for values in arrays_of(model).values())


def test_loss_goes_down_and_recall_beats_chance() -> None:
    data, test = squares(128, 0), squares(60, 1)
    _, first = _train(data, 1, 1)
    model, last = _train(data, 1, 12)
    assert last < 0.8 * first
    found = measure(Embedder(model), test.pixels, test.captions)
    guess = chance(len(test), [len(images) for images in relevance(test.captions)[1]])
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
    moved = _shift(pixels, torch.Generator().manual_seed(0))
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


def test_captions_are_numbered_across_items() -> None:
    data = TrainingSet(np.zeros((2, 3, 16, 16), np.uint8), (("A cat", "pet"), ("a cat ",)))
    texts, numbers = data.caption_numbers()
    assert texts == ["a cat", "pet"] and numbers.tolist() == [[0, 1], [0, -1]]


def test_a_loss_that_is_not_finite_ends_training() -> None:
    model = TwoTowers.initial(TINY, 0)
    with torch.no_grad():
        model.project.weight.fill_(torch.nan)
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
