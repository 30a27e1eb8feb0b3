"""``blindsight bench training`` on a small federation from scratch."""

from pathlib import Path

import pytest

from protocol.errors import UsageError
from simulations.bench.training import bench_training
from simulations.scenes import write_scenes


def test_both_runtimes_are_timed_on_the_same_batches(tmp_path: Path) -> None:
    write_scenes(tmp_path, 120, 2, 0, lambda done: None)
    options = {"rounds": 2, "local_epochs": 1, "batch_size": 8}
    found = bench_training(tmp_path, 2, None, options).data
    assert found["pairs"] > 60 and found["rounds"] == 2
    assert found["plain_loop_s"] > 0 and 0 < found["flower_rounds_s"] < found["flower_total_s"]
    assert found["flower_over_plain"] == pytest.approx(
        found["flower_rounds_s"] / found["plain_loop_s"]
    )
    assert found["seconds_per_10000_pairs_and_epoch"] > 0
    assert found["bytes_up_a_round"] > 100_000


def test_a_setting_out_of_range_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="rounds: expected a whole number"):
        bench_training(tmp_path / "nowhere", 2, None, {"rounds": 0})
