"""The benchmark of the relay, small: that it measures both ways, not how fast they are."""

import pytest

from simulations.bench.relay import RelayBench


@pytest.mark.e2e
def test_both_ways_are_measured() -> None:
    data = RelayBench(items=300, dim=16, preset="fast", threads=1, queries=2).run().data
    assert data["direct_ms"] > 0 and data["relay_ms"] > 0
    assert data["ratio"] == data["relay_ms"] / data["direct_ms"]
