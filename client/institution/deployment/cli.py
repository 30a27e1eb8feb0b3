"""The institution's command for what runs."""

import json
from pathlib import Path
from typing import Annotated

import typer

from protocol.terminal import AsJson, Outcome, command

HomeOption = Annotated[Path, typer.Option(help="The institution's folder.")]


@command
def up(home: HomeOption, as_json: AsJson = False) -> Outcome:
    """Run node, executor and service until stopped; one JSON line says when they have started."""
    from client.institution.deployment.place import Place
    from client.institution.deployment.processes import up as run

    place = Place.open(home)
    settings = place.institution
    ready = {"institution": settings.name, "coordinator": settings.coordinator}
    run(place, lambda: print(json.dumps(ready), flush=True))
    return Outcome(f"{settings.name} has stopped", ready)
