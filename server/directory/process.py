"""Directory, relay and releases as a process: ``python -m server.directory.process HOME``."""

import asyncio
import json
import os
import sys
from pathlib import Path

from protocol.child import Program
from protocol.errors import BlindsightError
from protocol.hosts import endpoint, from_here
from protocol.supervision import listens
from protocol.terminal import fail
from server.deployment.place import Place
from server.directory.service import CoordinatorService, serve


def program(place: Place) -> Program:
    """How a supervisor starts it."""
    settings = place.federation
    return Program(
        "directory",
        (sys.executable, "-m", "server.directory.process", str(place.root)),
        place.log("directory"),
        {"PATH": os.defpath},
        ready=lambda: listens(from_here(settings.listen), settings.directory_port),
    )


def run(place: Place) -> None:
    """Serve until SIGTERM or Ctrl-C; one JSON line has the address once calls are taken.

    Raises what ``CoordinatorService`` raises.
    """
    place.folder("state")
    settings = place.federation

    def make() -> CoordinatorService:
        return CoordinatorService(
            place.credentials,
            place.roster,
            place.state / "offers.json",
            endpoint(settings.listen, settings.directory_port),
            releases=place.releases,
        )

    asyncio.run(serve(make, lambda at: print(json.dumps({"address": at}), flush=True)))


if __name__ == "__main__":
    try:
        run(Place.open(Path(sys.argv[1])))
    except BlindsightError as error:
        sys.exit(fail(error, False))
