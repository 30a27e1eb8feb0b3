"""The choice of a chunk width: what is best for one goal and network is not for another."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from protocol.errors import UsageError
from protocol.params import FAST, PRIVATE
from protocol.plan import Costs, best, plans
from simulations.cli import app


@settings(deadline=None)
@given(st.sampled_from([PRIVATE, FAST]), st.integers(1, 1024), st.integers(1, 2**24))
def test_the_best_of_a_goal_is_least(preset: object, dim: int, items: int) -> None:
    choices = plans(preset, dim, items, Costs())  # type: ignore[arg-type]
    assert best(choices, "bytes").total_bytes == min(one.total_bytes for one in choices)
    assert best(choices, "latency").latency_ms == min(one.latency_ms for one in choices)


def test_more_items_want_narrower_chunks() -> None:
    widths = [
        best(plans(PRIVATE, 256, items, Costs()), "bytes").layout.chunk_width
        for items in (100, 10_000, 1_000_000)
    ]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) == 3


def test_a_slow_way_up_wants_shorter_questions() -> None:
    def chunks(up: float) -> int:
        return best(plans(PRIVATE, 256, 100_000, Costs(up, 1000.0)), "latency").layout.chunks

    assert chunks(1.0) < chunks(1000.0)


def test_threads_shorten_the_server_alone() -> None:
    one, two = (plans(PRIVATE, 256, 10_000, Costs(threads=n))[3] for n in (1, 2))
    assert two.server_ms < one.server_ms
    assert two.searcher_ms == one.searcher_ms


@pytest.mark.parametrize(
    "bad",
    [
        {"up_mbit": 0},
        {"up_mbit": float("nan")},
        {"down_mbit": -1.0},
        {"down_mbit": float("inf")},
        {"threads": 0},
    ],
)
def test_a_network_that_cannot_be_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Costs(**bad)  # type: ignore[arg-type]


def test_an_unknown_goal_is_refused() -> None:
    with pytest.raises(UsageError, match="bytes, latency"):
        best(plans(PRIVATE, 8, 8, Costs()), "speed")


def test_the_command_shows_every_width_and_marks_one() -> None:
    flags = ["index", "plan", "--items", "10000", "--dim", "256"]
    shown = CliRunner().invoke(app, flags)
    assert shown.exit_code == 0
    assert shown.stdout.count("->") == 1
    data = json.loads(CliRunner().invoke(app, [*flags, "--json"]).stdout)["data"]
    assert [row["chunk_width"] for row in data["all"]] == [1, 2, 4, 8, 16, 32, 64, 128]
    assert data["chosen"] in data["all"]
    assert data["chosen"]["upload_bytes"] + data["chosen"]["download_bytes"] < 1_300_000
