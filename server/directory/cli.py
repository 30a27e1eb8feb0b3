"""The coordinator's command for directory, relay and releases."""

from pathlib import Path
from typing import Annotated

import typer

from protocol.terminal import AsJson, Outcome, command


@command
def serve(
    home: Annotated[Path, typer.Option(help="The coordinator's folder.")],
    as_json: AsJson = False,
) -> Outcome:
    """Run directory, relay and releases until stopped; one JSON line when ready."""
    from server.deployment.place import Place
    from server.directory.process import run

    place = Place.open(home)
    run(place)
    name = place.federation.name
    return Outcome(f"directory and relay of {name} have stopped", {"federation": name})
