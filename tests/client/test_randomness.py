"""Every sampler against its distribution. The bounds are six and more standard deviations."""

import numpy as np
from numpy.typing import NDArray

from client.institution.randomness import Stream
from protocol.packing import Layout
from protocol.params import PRIVATE

COUNT = 1 << 18


def chi_square(observed: NDArray[np.int64], expected: NDArray[np.float64]) -> float:
    """In standard deviations from its mean."""
    freedom = len(expected) - 1
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return (statistic - freedom) / np.sqrt(2 * freedom)


def test_ternary_is_uniform() -> None:
    drawn = Stream().ternary(COUNT)
    assert drawn.dtype == np.int8
    counts = np.bincount(drawn.astype(np.int64) + 1)
    assert chi_square(counts, np.full(3, COUNT / 3)) < 8


def test_centred_binomial_has_the_distribution_of_seal() -> None:
    drawn = Stream().centred_binomial(COUNT).astype(np.int64)
    assert abs(drawn.mean()) < 6 * np.sqrt(10.5 / COUNT)
    assert abs(drawn.var() - 10.5) < 0.2
    assert np.abs(drawn).max() <= 21
    steps = np.array([1.0])
    for _ in range(42):
        steps = np.convolve(steps, [0.5, 0.5])
    likely = np.flatnonzero(steps * COUNT > 20)
    counts = np.bincount(drawn + 21, minlength=43)[likely]
    assert chi_square(counts, steps[likely] * COUNT) < 8


def test_uniform_fills_its_range_evenly() -> None:
    bits = 58
    drawn = Stream().uniform(COUNT, bits)
    assert drawn.min() >= -(1 << bits)
    assert drawn.max() < 1 << bits
    counts = np.bincount((drawn >> (bits - 5)) + 32, minlength=64)
    assert chi_square(counts, np.full(64, COUNT / 64)) < 8
    low = np.bincount(drawn & 63, minlength=64)
    assert chi_square(low, np.full(64, COUNT / 64)) < 8


def test_no_two_streams_and_no_two_draws_are_alike() -> None:
    one, other = Stream(), Stream()
    first = one.uniform(64, 62)
    assert not np.intersect1d(first, other.uniform(64, 62)).size
    assert not np.intersect1d(first, one.uniform(64, 62)).size


def test_neighbours_are_not_correlated() -> None:
    drawn = Stream().centred_binomial(COUNT).astype(np.float64)
    assert abs((drawn[1:] * drawn[:-1]).mean()) < 6 * 10.5 / np.sqrt(COUNT)


def test_a_mask_has_the_shapes_that_scoring_needs() -> None:
    layout = Layout(PRIVATE, 64, 32, 500)
    mask = Stream().mask(3, layout)
    assert mask.ternary.shape == (3, layout.public_keys, 4096) == (3, 2, 4096)
    assert mask.error.shape == (3, 4096)
    assert mask.flood.shape == (3, 128)
