"""The benchmarks' commands."""

from typing import Annotated

import typer

from client.institution.cli import GoalOption
from protocol.terminal import AsJson, Outcome, command

app = typer.Typer(help="Measure this machine against other engines.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keep the name of a command although it is the only one."""


@app.command()
@command
def score(
    items: Annotated[int, typer.Option(min=1, help="Vectors in the index.")] = 10_000,
    dim: Annotated[int, typer.Option(min=1, help="Coordinates of a vector.")] = 256,
    preset: Annotated[str, typer.Option(help="Parameter set: private or fast.")] = "private",
    threads: Annotated[int, typer.Option(min=1, max=256, help="Threads for scoring.")] = 1,
    queries: Annotated[int, typer.Option(min=1, help="Questions, after one to warm up.")] = 5,
    peers: Annotated[
        bool, typer.Option("--peers/--no-peers", help="Also measure TenSEAL, SEAL and OpenFHE.")
    ] = True,
    goal: GoalOption = "bytes",
    as_json: AsJson = False,
) -> Outcome:
    """Measure encrypted scoring, phase by phase, beside FAISS and other encrypted engines.

    The index is packed as blindsight institution index does for the same --goal.
    """
    from simulations.bench.score import ScoreBench

    return ScoreBench(items, dim, preset, threads, queries, peers, goal).run()
