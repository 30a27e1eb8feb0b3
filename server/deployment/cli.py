"""The coordinator's commands for what runs."""

import json
import re
from pathlib import Path
from typing import Annotated

import typer

from protocol.terminal import AsJson, Outcome, command

app = typer.Typer(help="Run a federation's coordinator.", no_args_is_help=True)

HomeOption = Annotated[Path, typer.Option(help="The coordinator's folder.")]


@app.callback()
def _group() -> None:
    """Keep ``up`` a command of its own name while it is the only one."""


@app.command()
@command
def up(home: HomeOption, as_json: AsJson = False) -> Outcome:
    """Run superlink, executor and nginx until stopped; one JSON line says when they are ready."""
    from server.deployment.place import Place
    from server.deployment.superlink import up as run

    coordinator = Place.open(home)
    settings = coordinator.federation
    ready = {"federation": settings.name, "address": settings.coordinator}
    run(coordinator, lambda: print(json.dumps(ready), flush=True))
    return Outcome(f"the coordinator of {settings.name} has stopped", ready)


@command
def bundle(
    out: Annotated[Path, typer.Option(help="File to write.")],
    as_json: AsJson = False,
) -> Outcome:
    """Write the code that runs beside institutions' data, and print its SHA-256.

    Whoever has a checkout can: an institution that reviewed one gets the same bytes from it.
    """
    from protocol.files import write_atomically
    from server.deployment.bundle import build_bundle

    built = build_bundle()
    write_atomically(out, built.content)
    data = {"sha256": built.sha256, "bytes": len(built.content), "file": str(out)}
    return Outcome(built.sha256, data)


@command
def approve_bundle(
    sha256: Annotated[str, typer.Argument(help="The bundle that was reviewed, by its SHA-256.")],
    home: Annotated[Path, typer.Option(help="The reviewer's folder: any member's.")],
    as_json: AsJson = False,
) -> Outcome:
    """Sign that a bundle may run beside data; institutions that list the reviewer accept it.

    Build the bundle from the checkout that was read, so that the SHA-256 is of just that code.
    """
    from protocol.bundle_approval import approve
    from protocol.errors import UsageError
    from protocol.identity import Identity
    from protocol.provisioning.home import Home

    if not re.fullmatch("[0-9a-f]{64}", sha256):
        raise UsageError(
            f"expected a SHA-256 of 64 hexadecimal digits, got {sha256!r:.80}",
            "It is what blindsight federation bundle prints.",
        )
    party = Home(home)
    approval = approve(sha256, Identity.load(party.credentials.private_key))
    party.audit.record("bundle-reviewed", sha256=sha256)
    return Outcome(approval, {"sha256": sha256, "approval": approval})
