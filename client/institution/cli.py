"""The institution's commands beside those of its index (index_cli.py) and its data."""

from pathlib import Path
from typing import Annotated

import typer

from protocol.terminal import AsJson, Outcome, command

app = typer.Typer(help="Answer encrypted questions.", no_args_is_help=True)

Int8Option = Annotated[
    bool, typer.Option("--int8", help="Run pretrained encoders with weights of eight bits.")
]


@app.command()
@command
def serve(
    name: Annotated[str, typer.Option(help="Name to answer under.")],
    data: Annotated[Path, typer.Option(help="Folder with the images.")],
    index: Annotated[Path, typer.Option(help="Folder of the index.")],
    credentials: Annotated[
        Path,
        typer.Option(help="Folder with certificate.pem, private-key.pem and authority.pem."),
    ],
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. (default: 127.0.0.1)")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port; 0 takes any that is free. (default: 0)")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads for scoring.")] = None,
    release: Annotated[
        list[str] | None,
        typer.Option(help="What searchers may fetch: thumbnail, caption. Default: nothing."),
    ] = None,
    until_stdin_closes: Annotated[
        bool, typer.Option(help="Stop when standard input is closed.")
    ] = False,
    as_json: AsJson = False,
) -> Outcome:
    """Answer encrypted questions over mutual TLS until stopped."""
    from client.institution.service import serve as run
    from client.institution.settings import ServiceSettings
    from protocol.flags import settings_from_flags

    settings = settings_from_flags(
        ServiceSettings,
        "See blindsight institution serve --help; settings also come from "
        "BLINDSIGHT_INSTITUTION_* in the environment.",
        name=name,
        data=data,
        index=index,
        credentials=credentials,
        host=host,
        port=port,
        threads=threads,
        release=release or None,
    )
    run(settings, until_stdin_closes)
    return Outcome(f"{name} has stopped", {"name": name})
