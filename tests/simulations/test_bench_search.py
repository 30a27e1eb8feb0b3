"""The benchmark of a whole search, small: what it measures, not how fast it is."""

import pytest

from simulations.bench.search import SearchBench
from simulations.bench.search_figures import PHASES


@pytest.mark.e2e
def test_every_part_of_a_search_is_measured() -> None:
    bench = SearchBench(
        institutions=2,
        items=60,
        drawings=12,
        dim=16,
        queries=2,
        fresh=1,
        k=4,
        threads=1,
        preset="fast",
    )
    outcome = bench.run()
    data = outcome.data
    assert 0 < data["first_pictures_ms"]["median"] <= data["all_pictures_ms"]["median"]
    assert list(data["phases_ms"]) == list(PHASES)
    whole = data["all_pictures_ms"]["p95"]
    assert all(0 < one["median"] <= whole for one in data["phases_ms"].values())
    assert data["fresh_process_ms"]["median"] > data["all_pictures_ms"]["median"]
    assert data["recall_against_faiss"] >= 0.75
    assert data["over_faiss"] == whole_over(data)
    for words in ("call to first pictures, warm", "FAISS in plaintext", "2 institutions of 60"):
        assert words in outcome.text


def whole_over(data: dict) -> float:
    return data["all_pictures_ms"]["median"] / data["faiss_ms"]["median"]
