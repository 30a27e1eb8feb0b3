"""What became of a run in which a process was killed, and what should have become of it."""

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from flwr.app import Context, Message

from client.institution.app import app as client_app
from protocol.errors import BlindsightError
from protocol.model.release import read_release
from protocol.model.settings import TrainingSettings
from protocol.terminal import say
from server.deployment import training
from server.deployment.run import TrainingRun
from server.round import RoundReport
from simulations.faults.fault import Fault
from simulations.faults.stage import Stage
from simulations.grid import run_in_process
from simulations.running import run_config

ROUNDS = 2
_GIVEN: dict[str, object] = {
    "rounds": ROUNDS,
    "local_epochs": 1,
    "deadline_seconds": 90.0,
    "quorum": 2,
}
_MOST_BY_HAND = 3
#: Who is not in which round.
Missed = frozenset[tuple[str, int]]
Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Outcome:
    """One run: ``struck`` says whether the fault came to pass.

    ``automatic`` and ``by_hand`` count how often the run was resumed. ``acknowledged`` is how many
    rounds were on disk when the process was killed; ``kept``, that they are the finished run's,
    unchanged, and that no round that was told was told otherwise later.
    """

    struck: bool
    seconds: float
    automatic: int
    by_hand: int
    acknowledged: int
    kept: bool
    missed: Missed
    weights: Weights


@dataclass(slots=True)
class _Witness:
    """What was on disk before the kill."""

    struck: bool = False
    before: tuple[RoundReport, ...] = field(default=())

    def watch(self, stage: Stage, fault: Fault, run: TrainingRun, begin: int) -> None:
        """Look at the run at its moment, then strike."""
        try:
            fault.await_moment(stage, begin)
            self.before = run.reports()
            fault.strike(stage)
            self.struck = True
        except BlindsightError as error:
            say(f"{fault.name}: {error.message}")


def play(stage: Stage, fault: Fault | None) -> Outcome:
    """Train once, with the fault if one is given. Raises what training raises for good."""
    began, place, witness = time.monotonic(), stage.place, _Witness()
    seen: list[RoundReport] = []
    by_hand = 0
    run = training.begin(place, run_config(_GIVEN))
    if fault is not None:
        given = (stage, fault, run, stage.heard())
        threading.Thread(target=witness.watch, args=given, daemon=True).start()
    while True:
        try:
            run = training.train(place, run, seen.append)
            break
        except BlindsightError as error:
            by_hand += 1
            say(error.message)
            if by_hand > _MOST_BY_HAND:
                raise
            time.sleep(5)
            run = training.unfinished(place)
    reports = run.reports()
    dropped = {(one.name, report.number) for report in reports for one in report.dropped}
    absent = {
        (home.name, report.number)
        for home in stage.poc.institutions
        for report in reports
        if home.name not in {one.name for one in report.institutions}
    }
    return Outcome(
        fault is None or witness.struck,
        time.monotonic() - began,
        len(run.flower_runs) - 1 - by_hand,
        by_hand,
        len(witness.before),
        set(seen) <= set(reports) and reports[: len(witness.before)] == witness.before,
        frozenset(dropped | absent),
        read_release(place.releases / str(run.release)).load().state_dict(),
    )


class _Absent:
    """The institutions' app, which fails in the rounds that were missed."""

    def __init__(self, missed: Missed) -> None:
        self._missed = missed

    def __call__(self, message: Message, context: Context) -> Message:
        number = message.content.config_records["config"]["server-round"]
        absent = (context.node_config["name"], number) in self._missed
        if absent and message.metadata.message_type == "train":
            raise ConnectionError("absent")
        return client_app(message=message, context=context)


def expected(stage: Stage, missed: Missed) -> Weights:
    """The weights that the same federation gives in one process, without who missed a round."""
    settings = TrainingSettings.from_run_config(run_config(_GIVEN))
    homes = {home.name: home / "data" for home in stage.poc.institutions}
    found = run_in_process(homes, settings, share_counts=False, app=_Absent(missed))
    weights: Weights = found.model.state_dict()
    return weights


def distance(one: Weights, other: Weights) -> float:
    """The largest difference of two weights."""
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)
