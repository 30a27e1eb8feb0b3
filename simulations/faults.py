"""Kills each process of a real federation in turn, and says what became of the run.

``python -m simulations.faults [CASE ...]`` prints a table. A run must come to its end, keep every
round that was told before the fault, and give the model that it gives without the fault; where an
institution missed a round for it, the model that the same institutions give in one process when
that one is absent from that round.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from flwr.app import Context, Message

from client.institution.app import app as client_app
from protocol.errors import BlindsightError, TrainingError
from protocol.model.release import read_release
from protocol.model.settings import TrainingSettings
from protocol.supervision import processes
from protocol.terminal import say
from server.deployment import training
from server.deployment.place import Place
from server.round import RoundReport
from simulations.grid import run_in_process
from simulations.poc.poc import Poc
from simulations.running import run_config

INSTITUTIONS = 4
ROUNDS = 2
SCENES = 160
_DEADLINE = 60.0
_PATIENCE = 180.0
_GIVEN: dict[str, object] = {
    "rounds": ROUNDS,
    "local_epochs": 1,
    "deadline_seconds": _DEADLINE,
    "quorum": 2,
}
#: In which round, for so many of them were told before.
Missed = frozenset[tuple[str, int]]
Weights = Mapping[str, torch.Tensor]


@dataclass(frozen=True, slots=True)
class Fault:
    """Whom to kill, and when: once the node of an institution said ``moment``, in round 1."""

    name: str
    moment: str
    victim: Callable[["Stage"], int]
    starts: str = ""


@dataclass(slots=True)
class Stage:
    """The federation that the faults happen to; one institution of it is the one to suffer."""

    poc: Poc
    place: Place
    struck: str | None = None

    @property
    def sufferer(self) -> Path:
        """The folder of an institution."""
        return self.poc.institutions[0]

    def process(self, home: Path, name: str) -> int:
        """The number of a supervised process, or of its ``supervisor``."""
        found: dict[str, Any] = processes(home / "state") or {}
        if name == "supervisor":
            return int(found["supervisor"])
        return next(int(one["pid"]) for one in found["processes"] if one["name"] == name)

    def below(self, home: Path, name: str) -> int:
        """The number of a process that a supervised one started."""
        children = psutil.Process(self.process(home, name)).children()
        # Flower's executor does not take note of those of former runs.
        return next(int(one.pid) for one in children if one.status() != psutil.STATUS_ZOMBIE)

    def await_said(self, text: str, begin: int) -> None:
        """Wait until the sufferer's node has printed this after the first ``begin`` bytes."""
        log, deadline = self.sufferer / "state/logs/node.log", time.monotonic() + _PATIENCE
        while text.encode() not in log.read_bytes()[begin:]:
            if time.monotonic() > deadline:
                raise TrainingError(f"the node never said {text!r}")
            time.sleep(0.05)


_BEFORE, _DURING, _AFTER = "Receiving: query.share", "Receiving: train", "Receiving: query.unmask"
FAULTS = (
    Fault("superlink", _DURING, lambda s: s.process(s.poc.coordinator, "superlink")),
    Fault("coordinator's executor", _DURING, lambda s: s.process(s.poc.coordinator, "executor")),
    Fault("ServerApp", _DURING, lambda s: s.below(s.poc.coordinator, "executor")),
    Fault("nginx", _DURING, lambda s: s.process(s.poc.coordinator, "nginx")),
    Fault("all of the coordinator", _DURING,
          lambda s: s.process(s.poc.coordinator, "supervisor"), "coordinator"),
    Fault("node before its update", _BEFORE, lambda s: s.process(s.sufferer, "node")),
    Fault("node during its update", _DURING, lambda s: s.process(s.sufferer, "node")),
    Fault("node after its update", _AFTER, lambda s: s.process(s.sufferer, "node")),
    Fault("institution's executor", _DURING, lambda s: s.process(s.sufferer, "executor")),
    Fault("ClientApp", _DURING, lambda s: s.below(s.sufferer, "executor")),
    Fault("all of an institution", _DURING,
          lambda s: s.process(s.sufferer, "supervisor"), "institution"),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """What became of one run."""

    name: str
    seconds: float
    automatic: int
    by_hand: int
    kept: bool
    missed: Missed
    weights: Weights


def play(stage: Stage, fault: Fault | None) -> Row:
    """Train once, with the fault if one is given."""
    began, place = time.monotonic(), stage.place
    seen: list[RoundReport] = []
    kept, by_hand = True, 0

    def note(report: RoundReport) -> None:
        nonlocal kept
        known = [one for one in seen if one.number == report.number]
        kept = kept and all(one == report for one in known)
        seen.append(report)

    run = training.begin(place, run_config(_GIVEN))
    begin = (stage.sufferer / "state/logs/node.log").stat().st_size
    if fault is not None:
        threading.Thread(target=_strike, args=(stage, fault, begin), daemon=True).start()
    while True:
        try:
            run = training.train(place, run, note)
            break
        except BlindsightError as error:
            by_hand += 1
            say(f"{error.message}")
            if by_hand > 3:
                raise
            time.sleep(5)
            run = training.unfinished(place)
    reports = run.reports()
    missed = frozenset((one.name, r.number) for r in reports for one in r.dropped)
    absent = {
        (home.name, r.number)
        for home in stage.poc.institutions
        for r in reports
        if home.name not in {one.name for one in r.institutions}
    }
    weights = read_release(place.releases / str(run.release)).load().state_dict()
    return Row(
        "none" if fault is None else fault.name if stage.struck == fault.name else "NOTHING",
        time.monotonic() - began,
        len(run.flower_runs) - 1 - by_hand,
        by_hand,
        kept and {one.number for one in seen} <= {one.number for one in reports},
        missed | absent,
        weights,
    )


def _strike(stage: Stage, fault: Fault, begin: int) -> None:
    stage.await_said(fault.moment, begin)
    time.sleep(0.5)
    psutil.Process(fault.victim(stage)).kill()
    stage.struck = fault.name
    say(f"killed: {fault.name}")
    home = {"coordinator": stage.poc.coordinator, "institution": stage.sufferer}.get(fault.starts)
    for _ in range(10 if home else 0):  # as systemd would
        time.sleep(3)
        with suppress(BlindsightError):
            assert home is not None
            stage.poc.start_party(fault.starts, home)
            return


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


def main(names: list[str]) -> None:
    """Play all faults, or those named, and print the table."""
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    print("| killed with -9 | seconds | resumed | by hand | rounds kept | missed | difference |")
    print("|---|---|---|---|---|---|---|", flush=True)
    models: dict[Missed, Weights] = {}
    with tempfile.TemporaryDirectory() as folder:
        poc = Poc.open(Path(folder) / "poc")
        try:
            poc.make(INSTITUTIONS, SCENES, 0)
            poc.start()
            stage = Stage(poc, Place.open(poc.coordinator))
            for fault in chosen if names else (None, *chosen):
                try:
                    poc.await_online()
                    row = play(stage, fault)
                except BlindsightError as error:
                    print(f"| {fault.name if fault else 'none'} | FAILED: {error.message} |")
                    continue
                if row.missed not in models:
                    models[row.missed] = expected(stage, row.missed)
                missed = ", ".join(f"{name} {number}" for name, number in sorted(row.missed))
                print(
                    f"| {row.name} | {row.seconds:.0f} | {row.automatic} | {row.by_hand} | "
                    f"{'yes' if row.kept else 'NO'} | {missed or '-'} | "
                    f"{distance(row.weights, models[row.missed]):.1e} |",
                    flush=True,
                )
        finally:
            poc.stop()


if __name__ == "__main__":
    main(sys.argv[1:])
