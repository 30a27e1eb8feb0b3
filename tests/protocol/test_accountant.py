"""What noise costs, against closed forms, other accountants and itself."""

import math

import pytest
from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.accountant import ORDERS, Spending, epsilon, noise_for
from protocol.errors import MalformedMessage


def test_without_sampling_it_is_the_closed_form() -> None:
    """Renyi divergence a T / 2 z^2, and Proposition 12 of Canonne, Kamath and Steinke."""
    noise, steps, delta = 4.0, 10, 1e-6
    expected = min(
        a * steps / (2 * noise**2) + math.log1p(-1 / a) - math.log(delta * a) / (a - 1)
        for a in ORDERS
    )
    assert epsilon([Spending(noise, 1.0, steps)], delta) == pytest.approx(expected, abs=1e-6)


def test_sampling_at_order_two_is_the_closed_form() -> None:
    """log(1 + q^2 (exp(1/z^2) - 1)): what the binomial sum comes to at order 2."""
    from protocol.accountant import _one_step

    sampling, noise = 0.3, 1.7
    expected = math.log1p(sampling**2 * math.expm1(1 / noise**2))
    assert _one_step(noise, sampling)[0] == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize(
    ("noise", "sampling", "steps"), [(1.1, 256 / 60_000, 14_000), (2, 0.1, 99)]
)
def test_it_agrees_with_the_library_and_is_no_tighter_than_privacy_losses(
    noise: float, sampling: float, steps: int
) -> None:
    """The first is the library's own MNIST example (60 epochs, batch 256, noise 1.1)."""
    event = PoissonSampledDpEvent(sampling, GaussianDpEvent(noise))
    ours = epsilon([Spending(float(noise), sampling, steps)], 1e-5)
    theirs = RdpAccountant().compose(event, steps).get_epsilon(1e-5)
    tightest = PLDAccountant().compose(event, steps).get_epsilon(1e-5)
    assert tightest < ours < 1.25 * tightest
    assert theirs <= ours * (1 + 1e-9) < theirs * 1.05


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 8), st.floats(1e-4, 1), st.integers(1, 1000), st.integers(1, 1000))
def test_it_grows_with_every_charge_and_falls_with_noise(
    noise: float, sampling: float, first: int, second: int
) -> None:
    one, two = Spending(noise, sampling, first), Spending(noise, sampling, second)
    both = epsilon([one, two], 1e-6)
    assert both >= epsilon([one], 1e-6) > 0
    assert both == pytest.approx(epsilon([Spending(noise, sampling, first + second)], 1e-6))
    assert epsilon([Spending(noise * 1.5, sampling, first)], 1e-6) <= epsilon([one], 1e-6)
    assert epsilon([one], 1e-8) >= epsilon([one], 1e-6)


def test_noise_for_a_target_keeps_it_and_wastes_little() -> None:
    found = noise_for(3.0, 1e-6, 0.2, 50)
    assert 2.95 < epsilon([Spending(found, 0.2, 50)], 1e-6) <= 3.0
    assert epsilon([], 1e-6) == 0


@pytest.mark.parametrize(
    "wrong",
    [
        (0.01, 0.5, 1),
        (math.nan, 0.5, 1),
        (1.0, 0.0, 1),
        (1.0, 1.1, 1),
        (1.0, 0.5, 0),
        (True, 0.5, 1),
    ],
)
def test_values_out_of_range_are_refused(wrong: tuple[float, float, int]) -> None:
    with pytest.raises(MalformedMessage, match="privacy"):
        Spending(*wrong)
