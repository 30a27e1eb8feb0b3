"""Central noise: as wide as one institution's reach, and charged for."""

import numpy as np
import pytest
from scipy import stats

from protocol.errors import TrainingError
from server.privacy import CentralPrivacy


def test_the_noise_on_the_mean_is_the_bound_over_the_number() -> None:
    mean = {"w": np.full((100, 200), 0.5), "logit_scale": np.array(0.25)}
    found = CentralPrivacy(2.0, 3.0).protect(mean, 4)
    assert found["logit_scale"].shape == () and found["logit_scale"] != 0.25
    noise = (found["w"] - 0.5).ravel() / (2.0 * 3.0 / 4)
    assert stats.kstest(noise, "norm").pvalue > 1e-5
    again = CentralPrivacy(2.0, 3.0).protect(mean, 4)
    assert (again["w"] != found["w"]).all()


def test_rounding_of_masked_sums_widens_it() -> None:
    mean = {"w": np.zeros((200, 200))}
    found = CentralPrivacy(1.0, 1.0).protect(mean, 1, rounding=0.01)
    assert found["w"].std() == pytest.approx(1 + 0.01 * 200, rel=0.05)


def test_too_large_a_model_for_the_noise_is_refused() -> None:
    with pytest.raises(TrainingError, match="parameters"):
        CentralPrivacy(1000.0, 1.0).protect({"w": np.zeros(1_000_000)}, 3)


def test_it_costs_more_each_round() -> None:
    central = CentralPrivacy(1.0, 1.0)
    assert 0 == central.epsilon(0) < central.epsilon(1) < central.epsilon(2)
