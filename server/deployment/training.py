"""Starts a run, watches it, and goes on from the last checkpoint when a process of it died.

Who watches is not needed: a run goes on without, and may be watched again.
"""

import time
from collections.abc import Callable, Mapping

from protocol.audit import AuditLog
from protocol.errors import ServiceError, TrainingError, UsageError
from protocol.identity import Identity
from protocol.terminal import say
from server.deployment.bundle import build_bundle
from server.deployment.control import Control, RunState
from server.deployment.place import Place
from server.deployment.run import Scalar, TrainingRun
from server.round import RoundReport

#: So often a run goes on by itself.
MAX_RESUMES = 5
#: So long a superlink may be away before nobody waits for it any more.
AWAY_SECONDS = 600.0
_POLL_SECONDS = 1.0
#: How Flower begins what a ServerApp's own exception said.
_SAID = "ServerApp failed with exception: "


def begin(place: Place, config: Mapping[str, Scalar]) -> TrainingRun:
    """A new run with these settings. Raises UsageError while another is going on."""
    with Control(place.superlink, place.authority) as control:
        active = control.active()
    if active:
        raise UsageError(
            f"a run is going on already (Flower's {active[0]})",
            "Watch it: blindsight train --resume. End it: blindsight stop.",
        )
    return TrainingRun.begin(place.runs, config, build_bundle().sha256)


def unfinished(place: Place) -> TrainingRun:
    """The latest run, if it is not over. Raises UsageError if there is nothing to resume.

    A run whose release is named and not yet in its place was killed in between: it is not over.
    """
    run = TrainingRun.latest(place.runs)
    if run is None or (run.release is not None and (place.releases / run.release).exists()):
        raise UsageError("there is no run to go on with", "Leave --resume out.")
    return run


def train(place: Place, run: TrainingRun, on_round: Callable[[RoundReport], None]) -> TrainingRun:
    """Bring ``run`` to its end and publish its release; ``on_round`` is told of each round.

    Raises TrainingError with the ServerApp's own reason, or when the run was stopped;
    ServiceError when the superlink stays away. Either way ``run`` can be resumed.
    """
    audit, identity = place.audit, Identity.load(place.credentials.private_key)
    told = 0

    def look() -> None:
        nonlocal told
        reports = run.reports()
        for report in reports[told:]:
            on_round(report)
        told = max(told, len(reports))

    with Control(place.superlink, place.authority) as control:
        for attempt in range(MAX_RESUMES + 1):
            run, state = _attach(place, control, run, audit)
            state = _follow(control, state.run_id, look)
            if state.ending == "completed":
                run = run.publish(place.releases, identity)
                audit.record("release-published", run=run.number, release=run.release)
                return run
            _raise_if_final(state, attempt)
            say(f"the run's process died ({state.details or state.ending}); going on after round "
                f"{len(run.reports())}")  # fmt: skip
    raise AssertionError


def _attach(
    place: Place, control: Control, run: TrainingRun, audit: AuditLog
) -> tuple[TrainingRun, RunState]:
    """The run of Flower's that works on ``run``: one that is there, else a new one."""
    last = control.run(run.flower_runs[-1]) if run.flower_runs else None
    if last is not None and (not last.over or last.ending == "completed"):
        return run, last
    bundle = build_bundle()
    resume = bool(run.flower_runs)
    whose = {"roster": str(place.roster), "identity": str(place.identity)}
    number = control.start(bundle, {**run.run_config(resume), **whose})
    run = run.continued(number, bundle.sha256)
    audit.record(
        "run-started",
        run=run.number,
        flower_run=str(number),
        bundle=bundle.sha256,
        resumed=resume,
        rounds=run.rounds,
    )
    return run, RunState(number, "pending", "", "")


def _follow(control: Control, run_id: int, look: Callable[[], None]) -> RunState:
    """Wait until a run is over. A superlink that is away for a while is waited for."""
    away: float | None = None
    while True:
        try:
            state = control.run(run_id)
            if away is not None:
                say("the superlink answers again")
            away = None
        except ServiceError as error:
            if away is None:
                say(f"{error.message}; waiting for it")
            away = away or time.monotonic()
            if time.monotonic() - away > AWAY_SECONDS:
                raise
            state = None
        look()
        if state is not None and state.over:
            return state
        time.sleep(_POLL_SECONDS)


def _raise_if_final(state: RunState, attempt: int) -> None:
    """Raise TrainingError unless the run's process died, and not too often."""
    again = "blindsight train --resume goes on after the last round that was saved"
    if state.details.startswith(_SAID):
        raise TrainingError(state.details.removeprefix(_SAID)[:1000], again)
    if state.ending == "stopped":
        raise TrainingError("the run was stopped", again)
    if attempt == MAX_RESUMES:
        raise TrainingError(
            f"the run's process died {attempt + 1} times ({state.details or state.ending})", again
        )
