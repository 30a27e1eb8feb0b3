"""The noise: its distribution, and that nobody can repeat it."""

import numpy as np
import torch
from scipy import stats

from protocol.discrete_gaussian import SIGMA, DiscreteGaussian

# Chances below this fail a test: once in a hundred thousand runs of the suite.
_RARE = 1e-5


def test_moments_tails_and_shape_are_a_gaussians() -> None:
    drawn = DiscreteGaussian().draw(400_000) / SIGMA
    assert abs(drawn.mean()) < 5 / np.sqrt(drawn.size)
    assert abs(drawn.var() - 1) < 5 * np.sqrt(2 / drawn.size)
    assert abs((drawn**4).mean() - 3) < 5 * np.sqrt(96 / drawn.size)
    assert stats.kstest(drawn, "norm").pvalue > _RARE
    assert np.isclose((np.abs(drawn) > 3).mean(), 2 * stats.norm.sf(3), rtol=0.2)


def test_low_bits_and_signs_are_even() -> None:
    drawn = DiscreteGaussian().draw(400_000)
    assert stats.chisquare(np.bincount(drawn & 255, minlength=256)).pvalue > _RARE
    assert stats.binomtest(int((drawn < 0).sum()), int((drawn != 0).sum())).pvalue > _RARE


def test_probabilities_match_the_definition() -> None:
    """By interval, against the sum of exp(-x^2 / 2 SIGMA^2), not against a continuous curve."""
    edges = np.array([-3, -2, -1, -0.5, 0, 0.5, 1, 2, 3]) * SIGMA
    whole = np.arange(-8 * SIGMA, 8 * SIGMA + 1, dtype=np.float64)
    mass = np.exp(-((whole / SIGMA) ** 2) / 2)
    places = np.searchsorted(edges, whole, "right")
    expected = np.bincount(places, mass) / mass.sum()
    drawn = DiscreteGaussian().draw(300_000)
    found = np.bincount(np.searchsorted(edges, drawn, "right"), minlength=len(expected))
    assert stats.chisquare(found, expected * drawn.size).pvalue > _RARE


def test_samples_do_not_depend_on_where_a_buffer_ends() -> None:
    """To drop a sample that runs out of words would make the last of each buffer small."""
    source = DiscreteGaussian()
    firsts = np.concatenate([source.draw(1) for _ in range(20_000)]) / SIGMA
    assert stats.kstest(firsts, "norm").pvalue > _RARE


def test_no_seed_repeats_it() -> None:
    def drawn() -> bytes:
        torch.manual_seed(0)
        np.random.seed(0)
        return DiscreteGaussian().draw(64).tobytes()

    assert drawn() != drawn()
    assert DiscreteGaussian().draw(0).shape == (0,)
