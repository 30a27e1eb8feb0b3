"""What the coordinator does with replies that are wrong, late or missing.

The institutions here are ClientApps that misbehave on purpose, in the in-process runtime.
"""

import time
from collections.abc import Callable

import numpy as np
import pytest
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp

from protocol.errors import TrainingError
from protocol.model.settings import TrainingSettings
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers
from protocol.model.update import Arrays, arrays_of, pack
from server.coordinator import TrainingResult, coordinate
from server.round import RoundReport
from simulations.grid import InProcessGrid

TINY = TowerSettings(
    image_size=16, dim=8, image_width=16, image_stages=1, text_width=16, buckets=64, max_tokens=8
)
SETTINGS = TrainingSettings(rounds=2, quorum=2, deadline_seconds=20.0, seed=3, towers=TINY)
INITIAL = arrays_of(TwoTowers.initial(TINY, SETTINGS.seed))
Answer = Callable[[Message], Message]


def _change(step: float) -> Arrays:
    return {name: np.full_like(values, step) for name, values in INITIAL.items()}


def _reply(
    message: Message, step: float = 0.5, arrays: ArrayRecord | None = None, **metrics: float
) -> Message:
    found = {"train-loss": 1.0, "num-examples": 10, "val-recall-at-10": 0.25}
    found |= {name.replace("_", "-"): value for name, value in metrics.items()}
    content = RecordDict({"arrays": arrays or pack(_change(step)), "metrics": MetricRecord(found)})
    return Message(content, reply_to=message)


def _with(name: str, values: np.ndarray) -> ArrayRecord:
    record = pack(_change(0.5))
    record[name] = Array(values)
    return record


def _without(name: str) -> ArrayRecord:
    record = pack(_change(0.5))
    del record[name]
    return record


def _raise(_: Message) -> Message:
    raise RuntimeError("a caption: two lovers under a tree")


def _run(
    answers: dict[str, Answer], settings: TrainingSettings = SETTINGS
) -> tuple[TrainingResult, list[RoundReport]]:
    """Trains with one institution for each answer; each evaluates without complaint."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return answers[str(context.node_config["name"])](message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        metrics = MetricRecord({"val-recall-at-10": 0.5})
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    reports: list[RoundReport] = []
    with InProcessGrid(app, [{"name": name} for name in answers], workers=4) as grid:
        return coordinate(grid, settings, reports.append), reports


def _moved(result: TrainingResult) -> float:
    """How far every weight has moved; all moved alike."""
    steps = [
        (new - INITIAL[name]).ravel() for name, new in arrays_of(result.model).items() if new.size
    ]
    found = np.concatenate(steps)
    np.testing.assert_allclose(found, found.mean(), atol=1e-6)
    return float(found.mean())


LOGIT = "logit_scale"
BAD: dict[str, tuple[Answer, str]] = {
    "nan": (lambda m: _reply(m, arrays=_with(LOGIT, np.full(1, np.nan, np.float32))), "finite"),
    "shape": (lambda m: _reply(m, arrays=_with(LOGIT, np.zeros((1, 1), np.float32))), LOGIT),
    "dtype": (lambda m: _reply(m, arrays=_with(LOGIT, np.zeros(1))), "float64"),
    "extra": (lambda m: _reply(m, arrays=_with("vocabulary", np.zeros(1))), "vocabulary"),
    "missing": (lambda m: _reply(m, arrays=_without(LOGIT)), LOGIT),
    "huge": (lambda m: _reply(m, step=1e30), "changed by more"),
    "negative": (lambda m: _reply(m, num_examples=-1), "num-examples"),
    "nobody": (lambda m: _reply(m, num_examples=0), "num-examples"),
    "crowd": (lambda m: _reply(m, num_examples=10**12), "num-examples"),
    "fraction": (lambda m: _reply(m, num_examples=1.5), "num-examples"),
    "loss": (lambda m: _reply(m, train_loss=float("nan")), "train-loss"),
    "chatty": (lambda m: _reply(m, captions=3), "captions"),
    "error": (lambda m: Message(Error(2, "data: \x1b[31mnone"), reply_to=m), "data:  [31mnone"),
    "raises": (_raise, "error: RuntimeError"),
    "empty": (lambda m: Message(RecordDict({"config": ConfigRecord()}), reply_to=m), "config"),
    "both": (
        lambda m: Message(
            RecordDict({"arrays": MetricRecord(), "metrics": MetricRecord()}), reply_to=m
        ),
        "arrays",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_is_dropped_and_named_and_the_round_goes_on(name: str) -> None:
    answer, why = BAD[name]
    result, reports = _run({"bad": answer, "good": _reply, "also good": _reply})
    assert _moved(result) == pytest.approx(2 * 0.5)
    assert [report.counted for report in reports] == [True, True]
    for report in reports:
        (dropped,) = report.dropped
        assert dropped.name == "bad" and why in str(dropped.dropped)
        assert "lovers" not in str(dropped.dropped) and "\x1b" not in str(dropped.dropped)
        assert [found.name for found in report.institutions] == ["bad", "good", "also good"]
        assert report.bytes_down > 0 and report.bytes_up > 0 and report.rounds == 2


def test_weights_are_the_numbers_of_examples_until_one_is_hidden() -> None:
    result, reports = _run(
        {"a": lambda m: _reply(m, 1.0, num_examples=30), "b": lambda m: _reply(m, 0.0)}
    )
    assert _moved(result) == pytest.approx(2 * 0.75, abs=1e-6)
    assert [found.examples for found in reports[0].institutions] == [30, 10]
    assert result.recalls == {"a": 0.5, "b": 0.5}
    assert result.metrics == {"rounds": 2.0, "val_recall_at_10": 0.5}
    result, reports = _run(
        {
            "a": lambda m: _reply(m, 1.0, num_examples=30),
            "b": lambda m: _reply(m, 0.0, num_examples=1),
        }
    )
    assert _moved(result) == pytest.approx(2 * 0.5, abs=1e-6)
    assert [found.examples for found in reports[0].institutions] == [30, None]


def test_a_first_round_without_a_valid_reply_ends_the_run() -> None:
    bad = BAD["nan"][0]
    with pytest.raises(TrainingError, match=r"round 1: 0 usable replies.*a: .*finite"):
        _run({"a": bad, "b": bad})


def test_rounds_below_quorum_are_skipped_and_too_many_end_the_run() -> None:
    calls: list[int] = []

    def fails_first(message: Message) -> Message:
        calls.append(1)
        return _raise(message) if len(calls) == 1 else _reply(message)

    result, reports = _run({"a": fails_first, "b": _reply})
    assert [report.counted for report in reports] == [False, True]
    assert _moved(result) == pytest.approx(0.5)
    with pytest.raises(TrainingError, match="round 3: 1 usable replies, expected at least 2"):
        _run({"a": _raise, "b": _reply}, TrainingSettings(rounds=9, quorum=2, towers=TINY))
    with pytest.raises(TrainingError, match="none of 2 rounds"):
        _run({"a": _raise, "b": _reply})


def test_a_late_reply_is_not_waited_for() -> None:
    def late(message: Message) -> Message:
        time.sleep(1.2)
        return _reply(message)

    settings = TrainingSettings(rounds=1, quorum=1, deadline_seconds=0.8, towers=TINY, seed=3)
    result, reports = _run({"late": late, "quick": _reply}, settings)
    (dropped,) = reports[0].dropped
    assert dropped.name == "late" and dropped.dropped == "no reply within the deadline"
    assert _moved(result) == pytest.approx(0.5)


def test_too_few_institutions_are_not_waited_for_for_ever() -> None:
    settings = TrainingSettings(rounds=1, quorum=3, deadline_seconds=0.1, towers=TINY)
    with pytest.raises(TrainingError, match="only 2 institutions are there"):
        _run({"a": _reply, "b": _reply}, settings)
