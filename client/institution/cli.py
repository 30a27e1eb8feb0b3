"""The institution's commands: index a folder, serve the index."""

from pathlib import Path
from typing import Annotated

import typer

from client.institution.privacy.cli import privacy
from protocol.terminal import AsJson, Outcome, command, progress, say

app = typer.Typer(help="Index your images and answer encrypted questions.", no_args_is_help=True)
app.command()(privacy)
index_app = typer.Typer(help="Plan an index.", no_args_is_help=True)

GoalOption = Annotated[
    str, typer.Option(help="What the chunk width shall make least: bytes or latency.")
]
Int8Option = Annotated[
    bool, typer.Option("--int8", help="Run pretrained encoders with weights of eight bits.")
]
UpOption = Annotated[float, typer.Option(help="A searcher's Mbit/s to you.")]
DownOption = Annotated[float, typer.Option(help="Your Mbit/s to a searcher.")]


@app.command()
@command
def index(
    data: Annotated[Path, typer.Option(help="Folder with metadata.jsonl and the images.")],
    release: Annotated[Path, typer.Option(help="Folder of the model release.")],
    out: Annotated[Path, typer.Option(help="Folder of the index; a new epoch is added.")],
    preset: Annotated[str, typer.Option(help="Parameter set: private or fast.")] = "private",
    goal: GoalOption = "bytes",
    up_mbit: UpOption = 100.0,
    down_mbit: DownOption = 100.0,
    int8: Int8Option = False,
    as_json: AsJson = False,
) -> Outcome:
    """Embed every image of a folder with a release, and pack the index for encrypted scoring."""
    from client.institution.embedding import embed_folder
    from protocol.model.embedder import Embedder
    from protocol.model.release import read_release
    from protocol.params import preset_by_name
    from protocol.plan import Costs

    parameters, costs = preset_by_name(preset), Costs(up_mbit, down_mbit)
    embedder = Embedder(read_release(release), "int8" if int8 else "float32")
    with progress("packing", None) as show:
        built, _, skips = embed_folder(data, embedder, out, parameters, show, goal, costs)
    for skip in skips:
        say(f"skipped {skip}")
    manifest = built.manifest
    return Outcome(
        f"{manifest.items} images indexed under release {manifest.release_id}, epoch "
        f"{manifest.epoch}; {len(skips)} skipped",
        {
            "items": manifest.items,
            "epoch": manifest.epoch,
            "release_id": manifest.release_id,
            "skipped": [str(skip) for skip in skips],
            "upload_bytes": built.layout.upload_bytes,
            "download_bytes": built.layout.download_bytes,
        },
    )


@app.command()
@command
def serve(
    home: Annotated[
        Path | None,
        typer.Option(help="This institution's folder: identity, roster, policy, data and index."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name to answer under.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with the images.")] = None,
    index: Annotated[Path | None, typer.Option(help="Folder of the index.")] = None,
    credentials: Annotated[
        Path | None,
        typer.Option(help="Folder with certificate.pem, private-key.pem and authority.pem."),
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. (default: 127.0.0.1)")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 takes any that is free. (default: 0)")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads for scoring.")] = None,
    release: Annotated[
        list[str] | None,
        typer.Option(
            help="Without --home: what searchers may fetch: thumbnail, caption. Default: nothing."
        ),
    ] = None,
    metrics_port: Annotated[
        int | None, typer.Option(help="Show metrics for Prometheus on this port of 127.0.0.1.")
    ] = None,
    reflection: Annotated[
        bool | None, typer.Option("--reflection", help="Let callers list what can be called.")
    ] = None,
    each: Annotated[
        int | None, typer.Option(help="Calls of one searcher under way. (default: 8)")
    ] = None,
    most: Annotated[int | None, typer.Option(help="Calls under way in all. (default: 32)")] = None,
    together: Annotated[
        int | None, typer.Option(help="Questions in one pass over the index. (default: 8)")
    ] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Seconds a call may take, waiting included. (default: 300)")
    ] = None,
    until_stdin_closes: Annotated[
        bool, typer.Option(help="Stop when standard input is closed.")
    ] = False,
    as_json: AsJson = False,
) -> Outcome:
    """Answer encrypted questions over mutual TLS until stopped.

    With --home who may search, how often and what leaves is in its policy.toml, and everything
    that is asked is charged and noted there. Without, every certificate of the authority may.
    """
    from client.institution.service import serve as run
    from client.institution.settings import ServiceSettings
    from protocol.flags import settings_from_flags

    given: dict[str, object] = {
        "name": name,
        "data": data,
        "index": index,
        "credentials": credentials,
        "host": host,
        "port": port,
        "threads": threads,
        "release": release or None,
        "metrics_port": metrics_port,
        "reflection": reflection,
        "each": each,
        "most": most,
        "together": together,
        "seconds": seconds,
    }
    if home is not None:
        said = {flag: value for flag, value in given.items() if value is not None}
        given |= _of_home(home) | said
    settings = settings_from_flags(
        ServiceSettings,
        "See blindsight institution serve --help; settings also come from "
        "BLINDSIGHT_INSTITUTION_* in the environment.",
        **given,
    )
    run(settings, until_stdin_closes)
    return Outcome(f"{settings.name} has stopped", {"name": settings.name})


def _of_home(root: Path) -> dict[str, object]:
    """What an institution's folder says of its service."""
    from client.institution.provisioning.home import InstitutionFolder
    from client.institution.provisioning.settings import InstitutionSettings

    home = InstitutionFolder(root)
    settings = InstitutionSettings.load(home.settings)
    return {
        "home": root,
        "name": settings.name,
        "data": root / settings.data,
        "index": root / settings.index,
        "credentials": home.identity,
        "host": settings.service_host,
        "port": settings.service_port,
    }


@index_app.callback()
def _group() -> None:
    """Keep ``plan`` a command of its own name while it is the only one."""


@index_app.command()
@command
def plan(
    items: Annotated[int, typer.Option(help="How many items.")],
    dim: Annotated[int, typer.Option(help="Width of an embedding.")] = 128,
    preset: Annotated[str, typer.Option(help="Parameter set: private or fast.")] = "private",
    up_mbit: UpOption = 100.0,
    down_mbit: DownOption = 100.0,
    threads: Annotated[int, typer.Option(help="Threads for scoring.")] = 1,
    goal: GoalOption = "bytes",
    as_json: AsJson = False,
) -> Outcome:
    """Show what every chunk width costs, and which one the goal chooses."""
    from client.institution.planning import outcome
    from protocol.params import preset_by_name
    from protocol.plan import Costs, plans

    costs = Costs(up_mbit, down_mbit, threads)
    return outcome(plans(preset_by_name(preset), dim, items, costs), goal)
