"""What the load benchmark makes of questions; that it runs is seen by running it."""

import json

from simulations.bench.load_figures import Asked, figures, table


def test_figures_count_answers_alone_and_every_code() -> None:
    asked = [Asked("searcher-0", 10.0 * i, "ok") for i in range(1, 5)]
    asked += [Asked("searcher-1", 40.0, "ok"), Asked("searcher-1", 1.0, "limit_reached")]
    found = figures(asked, 10.0, [100_000_000, 110_000_000])
    assert (found["answered"], found["a_second"]) == (5, 0.5)
    assert found["codes"] == {"ok": 5, "limit_reached": 1}
    assert found["ms"]["p50"] == 30.0
    assert found["by_searcher"]["searcher-1"] == {
        "answered": 1,
        "ms": {"p50": 40.0, "p95": 40.0, "p99": 40.0},
    }
    data = {
        "together": found | {"service_cpu_ms": 40.0},
        "one_a_pass": found | {"service_cpu_ms": 50.0},
        "greedy_and_modest": found,
        "micro_batching_gain": 1.25,
    }
    told = table(data)
    assert "modest" in told and "gain 1.25" in told and "110 most" in told
    json.dumps(data)


def test_a_run_in_which_nothing_was_answered_is_told() -> None:
    found = figures([Asked("searcher-0", 1.0, "service: gone")], 10.0, [1])
    assert found["answered"] == 0 and found["ms"] == {}
