"""Sums of features: combined they are the statistics of the union, and hostile ones are refused."""

import numpy as np
import pytest
from flwr.app import MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays

from protocol.errors import MalformedMessage
from protocol.model.statistics import MESSAGE_TYPE, MIN_STD, Statistics, Sums
from protocol.model.update import pack

PARTS = st.lists(
    st.integers(2, 9).flatmap(
        lambda n: numpy_arrays(np.float32, (n, 3), elements=st.floats(-1e3, 1e3, width=32))
    ),
    min_size=1,
    max_size=4,
)


@given(PARTS)
def test_combined_sums_are_the_statistics_of_the_union(parts: list[np.ndarray]) -> None:
    sums = [Sums.from_content(Sums.of(part).to_content(), 3) for part in parts]
    found = Statistics.combine(sums)
    union = np.concatenate(parts).astype(np.float64)
    np.testing.assert_allclose(found.mean, union.mean(0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found.std, np.maximum(union.std(0), MIN_STD), rtol=1e-3, atol=1e-4)
    assert found.mean.dtype == found.std.dtype == np.float32
    read = Statistics.from_record(found.to_record(), 3)
    assert read.mean.tobytes() == found.mean.tobytes() and read.std.tobytes() == found.std.tobytes()


def test_a_hidden_count_makes_all_weigh_the_same() -> None:
    generator = np.random.default_rng(0)
    few, many = generator.normal(0, 1, (5, 3)), generator.normal(3, 1, (500, 3))
    hidden = Sums.of(few, share_count=False)
    assert hidden.count == 1
    np.testing.assert_allclose(hidden.sum, few.mean(0))
    found = Statistics.combine([hidden, Sums.of(many)])
    np.testing.assert_allclose(found.mean, (few.mean(0) + many.mean(0)) / 2, rtol=1e-6)


def test_a_feature_that_never_differs_can_still_be_divided_by() -> None:
    found = Statistics.combine([Sums.of(np.full((7, 3), 0.1, np.float32))])
    assert (found.std == np.float32(MIN_STD)).all()
    Statistics.from_record(found.to_record(), 3)


def _content(count: object = 4, **changes: np.ndarray) -> RecordDict:
    arrays = {"sum": np.ones(3), "sum_of_squares": np.ones(3)} | changes
    metrics = MetricRecord({"count": count})  # type: ignore[dict-item]
    return RecordDict({"statistics": pack(arrays), "metrics": metrics})


HOSTILE: dict[str, tuple[RecordDict, str]] = {
    "nothing": (RecordDict(), "expected statistics and metrics"),
    "no arrays": (
        RecordDict({"statistics": MetricRecord(), "metrics": MetricRecord()}),
        "expected",
    ),
    "no count": (RecordDict({"statistics": pack({}), "metrics": MetricRecord()}), "count"),
    "nobody": (_content(0), "count"),
    "fraction": (_content(1.5), "count"),
    "crowd": (_content(10**9), "count"),
    "more": (_content(labels=np.ones(3)), "labels"),
    "width": (_content(sum=np.ones(4)), "sum"),
    "single": (_content(sum=np.ones(3, np.float32)), "float32"),
    "nan": (_content(sum=np.full(3, np.nan)), "finite"),
    "huge": (_content(sum=np.full(3, 1e300)), "1e.30"),
    "impossible": (_content(sum=np.full(3, 2.1)), "smaller than any features"),
    "negative": (_content(sum_of_squares=np.full(3, -1.0)), "smaller than any features"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_other_sums_are_refused(name: str) -> None:
    content, why = HOSTILE[name]
    with pytest.raises(MalformedMessage, match=why):
        Sums.from_content(content, 3)


def test_what_the_coordinator_sends_is_checked() -> None:
    good = {"mean": np.ones(3, np.float32), "std": np.ones(3, np.float32)}
    Statistics.from_record(pack(good), 3)
    for change in (
        {"std": np.zeros(3, "f4")},
        {"mean": np.full(3, np.nan, "f4")},
        {"x": good["std"]},
    ):
        with pytest.raises(MalformedMessage):
            Statistics.from_record(pack(good | change), 3)
    with pytest.raises(MalformedMessage):
        Statistics.from_record(pack(good), 4)


def test_the_query_is_the_one_that_institutions_answer() -> None:
    assert MESSAGE_TYPE == "query.statistics"
