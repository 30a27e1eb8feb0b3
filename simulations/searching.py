"""Whom a command searches: a profile, a simulated federation, or services that are named."""

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.institution.cli import Int8Option
from protocol.errors import UsageError
from protocol.terminal import progress

if TYPE_CHECKING:
    from client.searcher.searcher import Searcher
    from protocol.model.runtime.tower import Precision

FederationOption = Annotated[
    Path | None, typer.Option(help="Folder of a simulated federation: its services are started.")
]
InstitutionOption = Annotated[
    list[str] | None, typer.Option(help="A running service, NAME=HOST:PORT; may be repeated.")
]
ReleaseOption = Annotated[Path | None, typer.Option(help="Folder of the model release.")]
CredentialsOption = Annotated[Path | None, typer.Option(help="Folder with your TLS files.")]
HomeOption = Annotated[
    Path | None,
    typer.Option(help="Your profile, if it is not the usual one: whom to ask, the directory says."),
]
FromOption = Annotated[
    str | None, typer.Option("--from", help="By commas: ask these institutions alone.")
]
PicturesOption = Annotated[
    bool | None,
    typer.Option(
        "--pictures/--no-pictures",
        help="Draw the pictures in the terminal. (default: if it can)",
    ),
]

WHOM = {
    "federation": FederationOption,
    "institution": InstitutionOption,
    "release": ReleaseOption,
    "credentials": CredentialsOption,
    "home": HomeOption,
    "only": FromOption,
    "int8": Int8Option,
}
"""The options of every command that searches: what ``open_searcher`` takes."""


def open_searcher(
    stack: ExitStack,
    federation: Path | None = None,
    institution: list[str] | None = None,
    release: Path | None = None,
    credentials: Path | None = None,
    home: Path | None = None,
    only: str | None = None,
    int8: bool | None = None,
) -> "Searcher":
    """Return a searcher that ends with ``stack``. Raises UsageError if nobody can be asked."""
    from client.searcher.searcher import Searcher
    from protocol.model.embedder import Embedder
    from protocol.model.release import read_release

    names = only.split(",") if only else []
    precision: Precision = "int8" if int8 else "float32"
    if federation is not None:
        from simulations.federation import LocalFederation

        local = LocalFederation(federation)
        embedder = Embedder(read_release(release) if release else local.read_release(), precision)
        with progress("starting services", None):
            remotes = local.serve(stack, names)
        found = Searcher(embedder, remotes)
    elif institution:
        from client.searcher.remote import RemoteInstitution
        from protocol.credentials import Credentials
        from simulations.federation import ANSWER_SECONDS

        if not release or not credentials:
            raise UsageError(
                "a named service needs to be known", "Give --release and --credentials as well."
            )
        mine = Credentials.in_folder(credentials)
        remotes = [
            RemoteInstitution(name, address, mine, ANSWER_SECONDS)
            for name, address in map(_named_address, institution)
        ]
        found = Searcher(Embedder(read_release(release), precision), remotes)
    else:
        if release:
            raise UsageError(
                "a profile has the release that its federation has signed",
                "Leave --release out, or name services with --institution.",
            )
        found = Searcher.from_profile(home, names, precision)
    return stack.enter_context(found)


def _named_address(text: str) -> tuple[str, str]:
    name, separator, address = text.partition("=")
    if not separator or ":" not in address:
        raise UsageError(f"--institution takes NAME=HOST:PORT, got {text!r}")
    return name, address
