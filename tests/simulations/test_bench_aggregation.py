"""``blindsight bench aggregation``, small."""

import pytest

from protocol.errors import UsageError
from simulations.bench.aggregation import bench_aggregation


@pytest.mark.parametrize("drop", [0, 1])
def test_the_sum_is_exact_to_the_step_and_four_bytes_a_value(drop: int) -> None:
    outcome = bench_aggregation(200_000, 5, drop)
    found = outcome.data
    assert 0 < found["max_error_steps"] <= found["bound_steps"] + 1e-6 == (5 - drop) / 2 + 1e-6
    assert 1 < found["bytes_over_plain"] < 1.02
    assert 0 < found["masking_s"] < found["institution_s"] and found["unmasking_s"] > 0
    assert f"{drop} dropped out, 4 unmask" in outcome.text


def test_too_many_drop_outs_are_refused_beforehand() -> None:
    with pytest.raises(UsageError, match="3 of 5 institutions cannot unmask a sum: it takes 4"):
        bench_aggregation(10, 5, 2)
