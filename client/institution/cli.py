"""The institution's commands beside those of its index (index_cli.py) and its data."""

from pathlib import Path
from typing import Annotated

import typer

from client.institution.privacy.cli import privacy, privacy_plan
from protocol.terminal import AsJson, Outcome, command

app = typer.Typer(help="Answer encrypted questions.", no_args_is_help=True)
app.command()(privacy)
app.command()(privacy_plan)

Int8Option = Annotated[
    bool, typer.Option("--int8", help="Run pretrained encoders with weights of eight bits.")
]


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
    connections: Annotated[
        int | None, typer.Option(help="Connections in all, half-open ones too. (default: 512)")
    ] = None,
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
        "connections": connections,
        "together": together,
        "seconds": seconds,
    }
    if home is not None:
        from client.institution.deployment.place import Place

        said = {flag: value for flag, value in given.items() if value is not None}
        given |= Place.open(home).service() | said
    settings = settings_from_flags(
        ServiceSettings,
        "See blindsight institution serve --help; settings also come from "
        "BLINDSIGHT_INSTITUTION_* in the environment.",
        **given,
    )
    run(settings, until_stdin_closes)
    return Outcome(f"{settings.name} has stopped", {"name": settings.name})
