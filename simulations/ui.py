"""``blindsight ui``: the page on which people search, for whom ``blindsight search`` can ask."""

import json
import threading
from contextlib import ExitStack
from typing import Annotated

import typer

from client.institution.cli import Int8Option
from protocol.terminal import AsJson, Outcome, command
from simulations.searching import (
    CredentialsOption,
    FederationOption,
    FromOption,
    HomeOption,
    InstitutionOption,
    ReleaseOption,
    open_searcher,
)


@command
def ui(
    federation: FederationOption = None,
    institution: InstitutionOption = None,
    release: ReleaseOption = None,
    credentials: CredentialsOption = None,
    home: HomeOption = None,
    only: FromOption = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes any that is free.")
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
    int8: Int8Option = False,
    as_json: AsJson = False,
) -> Outcome:
    """Search on a page in your browser, served by this machine to itself alone.

    Prints the address, which opens the page once. Ctrl-C ends it.
    """
    from client.searcher.ui.server import serve

    def say(address: str) -> None:
        print(json.dumps({"address": address}) if as_json else address, flush=True)

    with ExitStack() as stack:
        searcher = open_searcher(
            stack, federation, institution, release, credentials, home, only, int8
        )
        threading.Thread(target=searcher.warm, daemon=True).start()
        serve(searcher, port, not (federation or institution), browser, say)
    return Outcome("the page is closed")
