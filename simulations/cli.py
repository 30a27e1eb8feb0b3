"""The command ``blindsight``: each room's commands, mounted so that ``--help`` is instant.

Nothing but typer is imported here; torch, flwr and the rest are imported inside commands.
"""

import atexit
import gc
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import click
import typer

from client.institution.cli import Int8Option
from client.institution.cli import app as institution
from client.institution.data_cli import data_app as data_commands
from client.institution.deployment.cli import up as institution_up
from client.institution.index_cli import app as index
from client.institution.provisioning.cli import COMMANDS as JOINING
from client.institution.rights_cli import add_to as add_rights
from client.searcher.assistant_cli import (
    AssistantModelOption,
    AssistantOption,
    RerankOption,
    reranked,
)
from client.searcher.cli import app as searcher
from protocol.audit_cli import audit_app
from protocol.errors import UsageError
from protocol.terminal import AsJson, Outcome, command, fail, progress
from server.deployment.cli import app as coordinator
from server.deployment.cli import approve_bundle, bundle
from server.directory.cli import serve as coordinator_serve
from server.provisioning.cli import app as federation_commands
from simulations import running
from simulations.bench.cli import app as bench
from simulations.options import TRAINING_FLAGS, with_flags, with_options
from simulations.poc.cli import app as poc
from simulations.searching import WHOM, PicturesOption, open_searcher
from simulations.shell import shell
from simulations.ui import ui

# No call home, ever: set before flwr, onnxruntime or transformers is imported anywhere.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

app = typer.Typer(
    help="Search every partner's images with a sentence, while nobody shows anybody anything.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(institution, name="institution")
add_rights(index)
app.add_typer(index, name="index")
app.add_typer(data_commands, name="data")
app.add_typer(bench, name="bench")
app.add_typer(audit_app, name="audit")
app.add_typer(coordinator, name="coordinator")
app.add_typer(poc, name="poc")
app.add_typer(federation_commands, name="federation")
app.add_typer(searcher, name="searcher")
institution.command("up")(institution_up)
coordinator.command("serve")(coordinator_serve)
for _name, _function in JOINING.items():
    institution.command(_name)(_function)
federation_commands.command()(bundle)
federation_commands.command()(approve_bundle)
for steer in (running.train, running.status, running.logs, running.stop, shell, ui):
    app.command()(steer)


@app.command()
@command
@with_flags(TRAINING_FLAGS)
def simulate(
    data: Annotated[
        Path | None, typer.Option(help="Folder with metadata.jsonl and images. (default: scenes)")
    ] = None,
    scenes: Annotated[int | None, typer.Option(help="Scenes to draw. (default: 3200)")] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most so many pairs.")] = None,
    institutions: Annotated[int | None, typer.Option(help="How many. [scenes: 4]")] = None,
    partition: Annotated[
        str | None, typer.Option(help="site, iid or dirichlet:ALPHA. (default: site)")
    ] = None,
    preset: Annotated[str | None, typer.Option(help="private or fast.")] = None,
    queries: Annotated[
        int | None, typer.Option(help="Encrypted queries to compare. (default: 200)")
    ] = None,
    baselines: Annotated[
        bool | None,
        typer.Option("--baselines/--no-baselines", help="Also train alone and on pooled data."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same model.")] = None,
    resume: Annotated[
        bool | None, typer.Option("--resume", help="Go on with a run that was killed in --out.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for all results. (default: runs/latest)")
    ] = None,
    as_json: AsJson = False,
    **training: object,
) -> Outcome:
    """Train a federation on this machine, index it, search it encrypted, and report."""
    from simulations.settings import SimulationSettings

    settings = SimulationSettings.from_flags(
        data=data,
        scenes=scenes,
        limit=limit,
        institutions=institutions,
        partition=partition,
        preset=preset,
        queries=queries,
        baselines=baselines,
        seed=seed,
        resume=resume,
        out=out,
        **training,
    )
    from simulations.simulate import simulate as run  # takes seconds: after the flags are checked

    return run(settings)


@app.command()
@command
@with_flags(TRAINING_FLAGS)
def experiment(
    data: Annotated[Path | None, typer.Option(help="What blindsight data inspect knows.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use at most so many pairs.")] = None,
    institutions: Annotated[int | None, typer.Option(help="How many. (default: 8)")] = None,
    partitions: Annotated[
        str | None, typer.Option(help="By commas: site, iid, topics, dirichlet:ALPHA.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Runs of each. (default: 3)")] = None,
    local: Annotated[
        bool | None, typer.Option("--local/--no-local", help="Also train each one alone.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results. (default: runs/experiment)")
    ] = None,
    as_json: AsJson = False,
    **training: object,
) -> Outcome:
    """Does joining pay? Train alone, federated and on pooled data, and compare."""
    from simulations.experiment.settings import ExperimentSettings

    settings = ExperimentSettings.from_flags(
        data=data,
        limit=limit,
        institutions=institutions,
        partitions=partitions,
        seeds=seeds,
        local=local,
        out=out,
        **training,
    )
    from simulations.experiment.experiment import experiment as run

    return run(settings)


@app.command()
@command
def evaluate(
    data: Annotated[Path, typer.Option(help="What blindsight data inspect knows.")],
    release: Annotated[Path, typer.Option(help="Folder of the model release.")],
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    group_key: Annotated[
        str | None, typer.Option(help="Key that names patient or product. (default: group)")
    ] = None,
    int8: Int8Option = False,
    as_json: AsJson = False,
) -> Outcome:
    """Measure a release on your own data: recall, rank and mean average precision."""
    from client.institution.evaluation.folder import evaluate_folder
    from client.institution.evaluation.table import table
    from protocol.model.embedder import Embedder
    from protocol.model.release import read_release

    embedder = Embedder(read_release(release), "int8" if int8 else "float32")
    with progress("embedding", None):
        found = evaluate_folder(data, embedder, split, group_key or "group")
    return Outcome(table(found), found)


@app.command()
@command
@with_options(WHOM)
def search(
    sentence: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    image: Annotated[Path | None, typer.Option(help="Look for what is like this picture.")] = None,
    without: Annotated[
        list[str] | None, typer.Option(help="What it shall not show; may be repeated.")
    ] = None,
    k: Annotated[int, typer.Option("-k", "--k", help="How many pictures.")] = 10,
    sheet: Annotated[
        Path | None, typer.Option(help="Write the pictures to this HTML file.")
    ] = None,
    open_: Annotated[
        bool, typer.Option("--open", help="Show the pictures in the browser.")
    ] = False,
    pictures: PicturesOption = None,
    assistant: AssistantOption = None,
    assistant_model: AssistantModelOption = None,
    rerank: RerankOption = False,
    as_json: AsJson = False,
    **whom: Any,
) -> Outcome:
    """Search institutions with an encrypted sentence, picture, or both."""
    from client.searcher.sheet import outcome

    with ExitStack() as stack:
        searcher = open_searcher(stack, **whom)
        found = searcher.search(sentence or "", k, image=image, without=without or ())
        if rerank:
            found = reranked(found, assistant, assistant_model, whom["home"])
        return outcome(found, sheet, open_, pictures)


@app.command()
@command
def doctor(
    role: Annotated[
        str | None, typer.Option(help="Also check a party: coordinator, institution, searcher.")
    ] = None,
    home: Annotated[Path | None, typer.Option(help="The party's folder.")] = None,
    as_json: AsJson = False,
) -> Outcome:
    """Check this machine: versions, processor, encryption against known answers, disk, memory.

    With --role and --home also a party's folder: key, certificate, clock, coordinator, policy.
    """
    from simulations.doctor import examine

    return examine(role, home)


def main() -> None:
    """Run the command; an error in the flags themselves speaks like every other error."""
    # Imports make millions of objects that stay. Looking through them for garbage, while they are
    # made and once more at the end, takes a third of a short command's time.
    gc.set_threshold(100_000, 50, 100)
    atexit.register(gc.freeze)
    try:
        app(standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "blindsight"
        known = UsageError(error.format_message().rstrip("."), f"See {path} --help.")
        sys.exit(fail(known, "--json" in sys.argv))
    except click.Abort:
        sys.exit(fail(KeyboardInterrupt(), "--json" in sys.argv))


if __name__ == "__main__":
    main()
