"""``blindsight ui``: the page on which people search, for whom ``blindsight search`` can ask."""

import json
import threading
from contextlib import ExitStack
from typing import Annotated, Any

import typer

from protocol.terminal import AsJson, Outcome, command
from simulations.options import with_options
from simulations.searching import WHOM, open_searcher


@command
@with_options(WHOM)
def ui(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes any that is free.")
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser.")
    ] = True,
    as_json: AsJson = False,
    **whom: Any,
) -> Outcome:
    """Search on a page in your browser, served by this machine to itself alone.

    Prints the address, which opens the page once. Ctrl-C ends it.
    """
    from client.searcher.ui.server import serve

    def say(address: str) -> None:
        print(json.dumps({"address": address}) if as_json else address, flush=True)

    with ExitStack() as stack:
        searcher = open_searcher(stack, **whom)
        threading.Thread(target=searcher.warm, daemon=True).start()
        serve(searcher, port, not (whom["federation"] or whom["institution"]), browser, say)
    return Outcome("the page is closed")
