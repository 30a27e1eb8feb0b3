"""The commands that steer training in a deployment: train, status, logs, stop.

Here and not in the coordinator's room, for what may be said of training is said in one place for
every command that trains.
"""

from pathlib import Path
from typing import Annotated

import typer

from protocol.errors import UsageError
from protocol.terminal import AsJson, Outcome, command, say
from simulations.options import TRAINING_FLAGS, with_flags

HomeOption = Annotated[Path, typer.Option(help="The coordinator's folder.")]
#: Each institution settles these for itself, or a deployment has one value of them.
_NOT_HERE = {"features", "synonyms", "public_captions", "group_key", "dim"}
_FLAGS = {name: flag for name, flag in TRAINING_FLAGS.items() if name not in _NOT_HERE}


@command
@with_flags(_FLAGS)
def train(
    home: HomeOption,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same start.")] = None,
    quorum: Annotated[
        int | None, typer.Option(help="Least number of replies that make a round. (default: 2)")
    ] = None,
    deadline_seconds: Annotated[
        float | None, typer.Option(help="How long a round waits for replies. (default: 600)")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the latest run, or watch it.")
    ] = False,
    approvals: Annotated[
        Path | None, typer.Option(help="What reviewers of the bundle signed, one a line.")
    ] = None,
    as_json: AsJson = False,
    **training: object,
) -> Outcome:
    """Train with the institutions of the roster, show each round, and publish a release."""
    from server.deployment import training as deployed
    from server.deployment.place import Place
    from server.deployment.status import describe_round
    from server.round import RoundReport

    place = Place.open(home)
    own = {"seed": seed, "quorum": quorum, "deadline_seconds": deadline_seconds}
    given = {name: value for name, value in {**training, **own}.items() if value is not None}
    if resume and given:
        raise UsageError(
            f"--resume goes on with the settings of the run, and not with {', '.join(given)}",
            "Leave --resume out for a new run.",
        )
    run = deployed.unfinished(place) if resume else deployed.begin(place, run_config(given))
    if approvals is not None:
        run = run.approved(_approvals(approvals))
    earlier: list[RoundReport] = []

    def show(report: RoundReport) -> None:
        say(describe_round(report, earlier))
        earlier.append(report)

    if not run.config.get("secure-aggregation"):
        say("PLAIN aggregation: the coordinator sees each institution's update by itself")
    run = deployed.train(place, run, show)
    data = {"run": run.number, "rounds": len(earlier), "release_id": run.release,
            "release": str(place.releases / str(run.release)), "bundle": run.bundle}  # fmt: skip
    return Outcome(f"release {run.release} after {len(earlier)} rounds", data)


@command
def status(home: HomeOption, as_json: AsJson = False) -> Outcome:
    """Show the processes, who is there, and how far training is."""
    from server.deployment.place import Place
    from server.deployment.status import status as find
    from server.deployment.status import to_text

    found = find(Place.open(home))
    return Outcome(to_text(found), found)


@command
def stop(home: HomeOption, as_json: AsJson = False) -> Outcome:
    """End the training that goes on; blindsight train --resume goes on with it later."""
    from server.deployment.control import Control
    from server.deployment.place import Place

    place = Place.open(home)
    with Control(place.superlink, place.authority) as control:
        active = control.active()
        for number in active:
            control.stop(number)
            place.audit.record("run-stopped", flower_run=str(number))
    text = "the run was stopped" if active else "no run goes on"
    return Outcome(text, {"stopped": [str(number) for number in active]})


@command
def logs(
    home: Annotated[Path, typer.Option(help="A coordinator's or an institution's folder.")],
    process: Annotated[
        str | None,
        typer.Argument(help="Whose: superlink, executor, nginx, node, service, training"),
    ] = None,
    lines: Annotated[int, typer.Option(min=1, max=10_000, help="How many lines.")] = 40,
    as_json: AsJson = False,
) -> Outcome:
    """Show the end of what the processes of a folder printed."""
    from protocol.child import tail

    folder = home / "state" / "logs"
    names = sorted(one.stem for one in folder.glob("*.log"))
    if process == "training":
        found = {"training": _training_log(home)}
    else:
        if process is not None and process not in names:
            raise UsageError(
                f"{folder} has no log of {process!r:.40}", f"It has: {', '.join(names) or 'none'}."
            )
        chosen = [process] if process else names
        found = {one: tail(folder / f"{one}.log", limit=1 << 20) for one in chosen}
    cut = {name: "\n".join(text.splitlines()[-lines:]) for name, text in found.items()}
    return Outcome("\n".join(f"== {name}\n{text}" for name, text in cut.items()), cut)


def _training_log(home: Path) -> str:
    """What the latest run's ServerApp printed; the superlink keeps it."""
    from server.deployment.control import Control
    from server.deployment.place import Place
    from server.deployment.run import TrainingRun

    place = Place.open(home)
    run = TrainingRun.latest(place.runs)
    if run is None or not run.flower_runs:
        raise UsageError("no run was started yet", "blindsight train --home DIR")
    with Control(place.superlink, place.authority) as control:
        return control.log(run.flower_runs[-1])


def _approvals(path: Path) -> str:
    """What stands in a file of approvals, as a run-config carries it."""
    from protocol.bundle_approval import MAX_TEXT
    from protocol.files import read_bounded

    hint = "blindsight federation approve-bundle prints one."
    try:
        return ",".join(read_bounded(path, MAX_TEXT, hint).decode().split())
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as text: {error}", hint) from error


def run_config(given: dict[str, object]) -> dict[str, bool | float | int | str]:
    """Flower's run-config; towers follow from the encoders that are named.

    A deployment aggregates securely unless it is told not to: ``--no-secure-aggregation``.
    """
    from protocol.model.pretrained import Pretrained
    from simulations.options import encoders_of, training_of

    encoders = encoders_of(given)
    secure = given.get("secure_aggregation") is not False
    towers = Pretrained.load(encoders).settings
    settings = training_of({**given, "secure_aggregation": secure}, towers)
    config = {**settings.to_run_config(), **encoders.to_config()}
    return {name: value for name, value in config.items() if name != "towers"}
