"""What an institution remembers between rounds, in memory and on disk."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from client.institution.residual import Residuals, run_of
from protocol.errors import MalformedMessage, StorageError
from protocol.model.update import Arrays

RUN, OTHER = "ab" * 16, "cd" * 16
LIKE: Arrays = {"a": np.zeros((2, 3), np.float32), "b": np.zeros(1, np.float32)}


def _filled(value: float) -> Arrays:
    return {name: np.full_like(values, value) for name, values in LIKE.items()}


@pytest.mark.parametrize("durable", [False, True])
def test_a_round_takes_the_latest_from_before_it(tmp_path: Path, durable: bool) -> None:
    state, folder = RecordDict(), tmp_path / "state" if durable else None
    residuals = Residuals(state, folder, RUN)

    def held(number: int) -> float | None:
        again = Residuals(RecordDict() if durable else state, folder, RUN)
        found = again.load(number, LIKE)
        return None if found is None else float(found["a"][0, 0])

    assert held(1) is None
    for number in (1, 2, 5):
        residuals.save(number, _filled(number))
    assert [held(number) for number in (2, 3, 5, 6, 10_000)] == [None, 2, 2, 5, 5]
    residuals.save(5, _filled(50))  # the coordinator was killed and asks again
    assert [held(5), held(6)] == [2, 50]
    residuals.save(6, _filled(6))
    assert [held(6), held(7)] == [50, 6]
    residuals.save(3, {})
    assert held(7) == 6
    assert Residuals(state, folder, OTHER).load(7, LIKE) is None
    Residuals(state, folder, OTHER).save(1, _filled(9))
    assert held(7) is None, "one run at a time"
    assert len(state) == (0 if durable else 1)
    assert not durable or len(list((tmp_path / "state").iterdir())) == 1


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    residuals = Residuals(RecordDict(), tmp_path, RUN)
    residuals.save(1, _filled(1))
    (path,) = tmp_path.iterdir()
    good = path.read_bytes()
    other = {"a": LIKE["a"]}
    for data in (b"", good[:-1], good + b"\0" * 100_000, good[:9] + b"\xff" + good[10:]):
        path.write_bytes(data)
        with pytest.raises(StorageError, match=path.name):
            residuals.load(2, LIKE)
    path.write_bytes(good)
    for like in (other, {"a": LIKE["a"], "b": np.zeros(2, np.float32)}):
        with pytest.raises(StorageError, match=path.name):
            residuals.load(2, like)
    assert residuals.load(2, LIKE) is not None


def test_the_run_is_no_path() -> None:
    assert run_of(ConfigRecord({"run": RUN})) == RUN
    for bad in ({}, {"run": 3}, {"run": "../" * 10 + "ab"}, {"run": RUN.upper()}, {"run": RUN * 2}):
        with pytest.raises(MalformedMessage, match="run"):
            run_of(ConfigRecord(bad))
