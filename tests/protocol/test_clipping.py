"""How far one unit can move a sum."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from protocol.clipping import clip_update, on_grid

_VECTORS = arrays(np.float32, st.integers(1, 50), elements=st.floats(-1e6, 1e6, width=32))


@settings(max_examples=200, deadline=None)
@given(_VECTORS, st.floats(1e-3, 1e3), st.floats(1e3, 2.0**24))
def test_the_grid_never_lengthens_and_keeps_direction(
    values: np.ndarray, bound: float, limit: float
) -> None:
    found = on_grid(values, bound, limit)
    assert (found == np.rint(found)).all()
    assert sum(int(one) ** 2 for one in found) <= int(limit) ** 2 + 2 * int(limit) + 1
    assert (found * values >= 0).all()
    norm = float(np.linalg.norm(values.astype(np.float64)))
    exact = values.astype(np.float64) * (limit / max(norm, bound))
    assert (np.abs(exact - found) <= 1 + np.abs(exact) * 1e-5).all()


@settings(max_examples=100, deadline=None)
@given(_VECTORS, st.floats(-1e6, 1e6, width=32), st.floats(1e-3, 1e3))
def test_an_update_is_clipped_as_a_whole_with_its_0d_parts(
    values: np.ndarray, scale: float, bound: float
) -> None:
    found = clip_update({"w": values, "logit_scale": np.array(scale, np.float32)}, bound)
    assert found["logit_scale"].shape == () and found["w"].dtype == np.float32
    together = np.append(found["w"].astype(np.float64), float(found["logit_scale"]))
    assert np.linalg.norm(together) <= bound


def test_a_scalar_cannot_pass_unclipped_and_zero_stays_zero() -> None:
    assert clip_update({"logit_scale": np.array(102.0, np.float32)}, 1.0)["logit_scale"] <= 1
    assert not clip_update({"w": np.zeros(3, np.float32)}, 1.0)["w"].any()
    assert not on_grid(np.zeros(3, np.float32), 1.0, 1e6).any()


@pytest.mark.parametrize("wrong", [np.array([1]), np.array([np.nan], np.float32)])
def test_integers_and_what_is_not_finite_are_refused(wrong: np.ndarray) -> None:
    with pytest.raises(ValueError, match="finite"):
        clip_update({"counter": wrong}, 1.0)
    with pytest.raises(ValueError, match="finite"):
        on_grid(np.array([1, np.inf], np.float32), 1.0, 1e6)
