"""Flags win over the environment, that over blindsight.toml, that over defaults."""

from pathlib import Path

import pytest

from protocol.errors import UsageError
from simulations.settings import SimulationSettings


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_order_of_sources(elsewhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert SimulationSettings.from_flags(queries=None).queries == 200
    (elsewhere / "blindsight.toml").write_text("[simulate]\nqueries = 11\nseed = 5\n")
    assert SimulationSettings.from_flags().queries == 11
    monkeypatch.setenv("BLINDSIGHT_SIMULATE_QUERIES", "12")
    assert SimulationSettings.from_flags().queries == 12
    given = SimulationSettings.from_flags(queries=13)
    assert (given.queries, given.seed) == (13, 5)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"queries": 0}, "setting queries"),
        ({"preset": "quick"}, "'private' or 'fast'"),
        ({"data": "images", "scenes": 50}, "not both"),
    ],
)
def test_what_cannot_be_is_named(flags: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words) as caught:
        SimulationSettings.from_flags(**flags)
    assert "blindsight.toml" in caught.value.hint


def test_an_unknown_name_in_the_file_is_named(elsewhere: Path) -> None:
    (elsewhere / "blindsight.toml").write_text("[simulate]\nqueris = 11\n")
    with pytest.raises(UsageError, match="queris"):
        SimulationSettings.from_flags()
