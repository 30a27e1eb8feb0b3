"""How a coordinator is: its processes, who is there, how far training is; as text and as data."""

from collections.abc import Sequence
from typing import Any

from protocol.errors import ServiceError
from protocol.supervision import processes
from server.deployment.control import Control
from server.deployment.place import Place
from server.deployment.run import TrainingRun
from server.privacy import CENTRAL_DELTA
from server.round import RoundReport


def describe_round(report: RoundReport, earlier: Sequence[RoundReport] = ()) -> str:
    """One round in a line: who answered, what it gave, what it cost, how long the rest may take."""
    answered = [one for one in report.institutions if one.dropped is None]
    parts = [f"{len(answered)} of {len(report.institutions)} institutions"]
    if report.train_loss is not None:
        parts.append(f"loss {report.train_loss:.3f}")
    if report.val_recall_at_10 is not None:
        parts.append(f"recall@10 {100 * report.val_recall_at_10:.1f} % before it")
    paid = [f"{one.name} {one.privacy_epsilon:.2f}" for one in answered if one.privacy_epsilon]
    if paid:
        parts.append(f"epsilon so far: {', '.join(paid)}")
    if report.central_epsilon is not None:
        parts.append(f"central epsilon {report.central_epsilon:.2f} at {CENTRAL_DELTA:g}")
    parts.append(f"{report.bytes_down / 1e6:.1f} MB out, {report.bytes_up / 1e6:.1f} MB in")
    rounds = [*earlier, report]
    left = (report.rounds - report.number) * sum(one.seconds for one in rounds) / len(rounds)
    parts.append(f"{report.seconds:.0f} s" + (f", about {_time(left)} left" if left else ""))
    text = f"round {report.number} of {report.rounds}: {'; '.join(parts)}"
    if not report.counted:
        text += "; not counted"
    if report.masked is not None and report.masked.failure is not None:
        text += f"; no sum: {report.masked.failure}"
    return text + "".join(f"\n  without {one.name}: {one.dropped}" for one in report.dropped)


def status(place: Place) -> dict[str, Any]:
    """Processes, nodes and the latest run as plain data. Raises StorageError for a damaged one."""
    supervised = processes(place.state)
    found: dict[str, Any] = {
        "federation": place.federation.name,
        "address": place.federation.coordinator,
        "up": supervised is not None,
        "processes": [] if supervised is None else supervised["processes"],
        "institutions": _institutions(place) if supervised is not None else [],
        "run": None,
    }
    run = TrainingRun.latest(place.runs)
    if run is not None:
        reports = run.reports()
        found["run"] = {
            "number": run.number,
            "rounds": run.rounds,
            "done": len(reports),
            "counted": sum(report.counted for report in reports),
            "release": run.release,
            "bundle": run.bundle,
            "secure_aggregation": run.config.get("secure-aggregation", False),
            "last": describe_round(reports[-1], reports[:-1]) if reports else None,
            "state": _state(place, run) if supervised is not None else "unknown",
        }
    return found


def to_text(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"{found['federation']} at {found['address']}: {'up' if found['up'] else 'down'}"]
    for one in found["processes"]:
        again = f", started again {one['restarts']} times" if one["restarts"] else ""
        running = f"process {one['pid']}" if one["pid"] else f"waits: {one['last_end']}"
        lines.append(f"  {one['name']}: {running}{again}")
    for one in found["institutions"]:
        lines.append(f"  institution {one['name']}: {'online' if one['online'] else 'away'}")
    run = found["run"]
    if run is not None:
        masked = "secure aggregation" if run["secure_aggregation"] else "PLAIN aggregation"
        release = f", release {run['release']}" if run["release"] else ""
        done = f"{run['done']} of {run['rounds']} rounds"
        lines.append(f"run {run['number']}: {done}, {masked}, {run['state']}{release}")
        if run["last"]:
            lines.append(f"  {run['last']}")
    return "\n".join(lines)


def _institutions(place: Place) -> list[dict[str, Any]]:
    try:
        with Control(place.superlink, place.authority) as control:
            return [{"name": one.name, "online": one.online} for one in control.nodes()]
    except ServiceError:
        return []


def _state(place: Place, run: TrainingRun) -> str:
    if not run.flower_runs:
        return "not started"
    try:
        with Control(place.superlink, place.authority) as control:
            state = control.run(run.flower_runs[-1])
    except ServiceError:
        return "unknown"
    if state is None:
        return "unknown"
    return state.ending or state.status


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
