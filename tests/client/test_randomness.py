"""The randomness that hides items: its distribution, and that none of it is ever used twice.

Bounds are six standard deviations and more (2e-9 each): all of them together fail a sound sampler
less than once in a million runs.
"""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from math import sqrt
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray

from client.institution.blocks import pack_block
from client.institution.packed import PackedIndex, write_packed
from client.institution.question import Question
from client.institution.randomness import Mask, Stream
from client.institution.scorer import Scorer
from client.searcher.ckks import SealScheme
from protocol.packing import Layout
from protocol.params import ERROR_STDDEV, FAST, PRIVATE, Preset

ROOT = Path(__file__).parents[2]
N = PRIVATE.ring_degree
LAYOUT = Layout(PRIVATE, 2, 1, N)
BLOCKS = 64
WIDTH = 2 ** (PRIVATE.flood_bits + 1)


@pytest.fixture(scope="module")
def mask() -> Mask:
    """Of 64 blocks: 4 million ternary digits, and 262,144 of everything else."""
    return Stream().mask(BLOCKS, LAYOUT)


def draws(mask: Mask, part: str) -> NDArray[np.float64]:
    """One sampler's draws, a row a block, scaled to variance one."""
    spread = {"ternary": sqrt(2 / 3), "error": ERROR_STDDEV, "flood": WIDTH / sqrt(12)}[part]
    drawn: NDArray[np.float64] = getattr(mask, part).reshape(BLOCKS, -1) / spread
    return drawn


def chi_square(observed: NDArray[np.int64], expected: ArrayLike) -> float:
    """How far off the counts are, as a normal deviate (Wilson and Hilferty 1931).

    Standard deviations of the statistic itself would not do, its tail is longer: with two degrees
    of freedom ten of them are passed once in 60,000 times.
    """
    mean, little = np.asarray(expected, np.float64), 2 / (9 * (len(observed) - 1))
    statistic = float(((observed - mean) ** 2 / mean).sum())
    return float((np.cbrt(statistic / (len(observed) - 1)) - 1 + little) / sqrt(little))


def binomial() -> NDArray[np.float64]:
    """The probabilities of -21 to 21: the difference of two sums of 21 bits."""
    steps = np.array([1.0])
    for _ in range(42):
        steps = np.convolve(steps, [0.5, 0.5])
    return steps


# --- distributions


def test_a_mask_has_the_shapes_that_scoring_needs() -> None:
    layout = Layout(PRIVATE, 64, 32, 500)
    mask = Stream().mask(3, layout)
    assert mask.ternary.shape == (3, layout.public_keys, N) == (3, 2, N)
    assert mask.error.shape == (3, N)
    assert mask.flood.shape == (3, 128)


def test_ternary_is_uniform(mask: Mask) -> None:
    counts = np.bincount(mask.ternary.reshape(-1).astype(np.int64) + 1)
    assert len(counts) == 3
    assert chi_square(counts, counts.sum() / 3) < 6


@pytest.mark.parametrize("apart", [1, 2, 4, 8, 16, 32, 64, 4096])
def test_ternary_digits_are_uniform_together(mask: Mask, apart: int) -> None:
    """Four digits out of one byte or word must be 81 combinations, all as likely."""
    digits = mask.ternary.reshape(-1, 4, apart).astype(np.int64) + 1
    together = np.tensordot(3 ** np.arange(4), digits, (0, 1))
    counts = np.bincount(together.reshape(-1), minlength=81)
    assert chi_square(counts, counts.sum() / 81) < 6


def test_errors_are_distributed_as_those_of_seal(mask: Mask) -> None:
    drawn = mask.error.reshape(-1).astype(np.int64)
    assert np.abs(drawn).max() <= 21
    probable = binomial()
    likely = np.flatnonzero(probable * drawn.size > 20)
    counts = np.bincount(drawn + 21, minlength=43)
    assert chi_square(counts[likely], probable[likely] * drawn.size) < 6
    assert abs(drawn.mean()) < 6 * ERROR_STDDEV / sqrt(drawn.size)
    assert abs((drawn**3).mean()) < 6 * sqrt(15 * ERROR_STDDEV**6 / drawn.size), "symmetric"
    # The fourth moment of a sum of 42 halves is 3 v^2 - v/2.
    spread = sqrt(2 * ERROR_STDDEV**4 - ERROR_STDDEV**2 / 2)
    assert abs(drawn.var() - ERROR_STDDEV**2) < 6 * spread / sqrt(drawn.size)


@pytest.mark.parametrize("preset", [PRIVATE, FAST], ids=lambda preset: str(preset.name))
def test_flooding_fills_its_range_evenly(preset: Preset) -> None:
    bits = preset.flood_bits
    drawn = Stream().mask(BLOCKS, Layout(preset, 2, 1, N)).flood.reshape(-1)
    top = np.bincount(np.clip((drawn >> (bits - 5)) + 32, 0, 63), minlength=64)
    assert chi_square(top, drawn.size / 64) < 6
    low = np.bincount(drawn & 63, minlength=64)
    assert chi_square(low, drawn.size / 64) < 6
    middle = np.bincount((drawn >> bits // 2) & 63, minlength=64)
    assert chi_square(middle, drawn.size / 64) < 6
    # Both ends are reached, and passed by no more than an error.
    nearest = 2 ** (bits + 1) * 40 / drawn.size
    assert -(2**bits) - 21 <= drawn.min() < -(2**bits) + nearest
    assert 2**bits + 21 >= drawn.max() > 2**bits - nearest
    assert abs((drawn > 0).mean() - 0.5) < 3 / sqrt(drawn.size), "symmetric"
    assert abs((drawn / 2.0**bits).mean()) < 6 / sqrt(3 * drawn.size)
    assert abs((drawn / 2.0**bits).var() - 1 / 3) < 6 * sqrt(4 / 45 / drawn.size)


# --- correlations


@pytest.mark.parametrize("apart", [1, 2, 3, 4, 5, 8, 16, 32, 64, 128, 256, 2048])
@pytest.mark.parametrize("part", ["ternary", "error", "flood"])
def test_neighbours_and_lanes_are_not_correlated(mask: Mask, part: str, apart: int) -> None:
    drawn = draws(mask, part)
    for power in (drawn, drawn**2 - (drawn**2).mean()):
        product = power[:, apart:] * power[:, :-apart]
        assert abs(product.mean()) < 6 * power.var() / sqrt(product.size)


@pytest.mark.parametrize("part", ["ternary", "error", "flood"])
def test_blocks_are_not_correlated(mask: Mask, part: str) -> None:
    drawn = draws(mask, part)
    among = np.corrcoef(drawn) - np.eye(BLOCKS)
    # Of 2,016 pairs; seven, so that all stay as unlikely as one at six.
    assert np.abs(among).max() < 7 / sqrt(drawn.shape[1])


def test_keys_and_kinds_of_noise_are_not_correlated(mask: Mask) -> None:
    """What is drawn from one stream must not be the same bytes read twice."""
    keys = mask.ternary.swapaxes(0, 1).reshape(LAYOUT.public_keys, -1).astype(np.float64)
    rows = np.concatenate([keys, mask.error.reshape(1, -1), mask.flood.reshape(1, -1) / WIDTH])
    for power in (rows, np.abs(rows)):
        among = np.corrcoef(power) - np.eye(len(rows))
        assert np.abs(among).max() < 7 / sqrt(rows.shape[1])


# --- nothing is used twice


def distinct(floods: list[NDArray[np.int64]]) -> bool:
    """Whether no number comes twice: half a million of 2^59 do so once in four million runs."""
    every = np.concatenate([flood.reshape(-1) for flood in floods])
    return len(np.unique(every)) == len(every)


def test_no_two_streams_draws_or_threads_are_alike(mask: Mask) -> None:
    assert distinct([mask.flood])
    assert not distinct([mask.flood, mask.flood[:1]])
    stream = Stream()
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda _: Stream().mask(1, LAYOUT).flood, range(64)))
    assert distinct(
        [mask.flood, stream.mask(1, LAYOUT).flood, stream.mask(1, LAYOUT).flood, *drawn]
    )


def test_no_two_blocks_of_any_reply_share_a_mask(tmp_path_factory: pytest.TempPathFactory) -> None:
    """64 blocks of the same items, answered by four threads, twice: c1 is never the same."""
    layout = Layout(PRIVATE, 128, 128, 32 * 64)
    path = tmp_path_factory.mktemp("index") / "packed.bin"
    write_packed(path, layout, np.tile(np.eye(32, 128, dtype=np.float32), (64, 1)))
    key = SealScheme().keygen(PRIVATE)
    asked = layout.question_polynomials(np.eye(1, 128, dtype=np.float32)[0])
    chunks = key.encrypt_query(asked)
    keys, scorer = key.public_keys(layout.public_keys), Scorer(PackedIndex(path), 4)
    replies = [reply.c1 for _ in range(2) for reply in scorer.score(keys, chunks)]
    scorer.close()
    rows = np.concatenate(replies)
    assert len(rows) == 128
    for one, other in combinations(rows[:, :256], 2):
        assert (one == other).mean() < 0.05, "residues of 25 bits agree by chance alone"


def test_a_child_after_a_fork_draws_anew() -> None:
    """Both processes hold the same question; each draws its masks from the operating system."""
    code = """
import os, sys
import numpy as np
from tests.client.test_randomness import forked_question
question, block = forked_question()
question.answer(block, 0)
reader, writer = os.pipe()
child = os.fork()
if child:
    os.close(writer)  # so that a child that fails is an end of input
reply = question.answer(block, 0).c1
if child == 0:
    os.write(writer, reply[0, :1024].tobytes())
    os._exit(0)
found = np.frombuffer(os.read(reader, 4096), reply.dtype)
assert os.waitpid(child, 0)[1] == 0 and found.size == 1024
assert (found == reply[0, :1024]).mean() < 0.05, "parent and child share their masks"
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=120)


def forked_question() -> tuple[Question, NDArray[np.uint32]]:
    layout = Layout(PRIVATE, 128, 128, 32)
    items = np.eye(32, 128, dtype=np.float32)
    key = SealScheme().keygen(PRIVATE)
    chunks = key.encrypt_query(layout.question_polynomials(items[0]))
    question = Question(layout, key.public_keys(layout.public_keys), chunks)
    return question, pack_block(layout, items)[None]
