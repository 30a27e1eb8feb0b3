"""The institution's commands for joining a federation."""

from collections.abc import Callable
from typing import Annotated

import typer

from protocol.provisioning.spoken import (
    FingerprintOption,
    HomeOption,
    KitArgument,
    NameOption,
    RosterArgument,
    change_data,
    requested,
    updated,
)
from protocol.terminal import AsJson, Outcome, command


@command
def request(
    home: HomeOption,
    name: NameOption,
    host: Annotated[
        list[str] | None,
        typer.Option(help="Host or address where searchers reach you; may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> Outcome:
    """Make this institution's key, and the request for a certificate that leaves."""
    return requested(home, name, host or [])


@command
def install(
    kit: KitArgument,
    home: HomeOption,
    fingerprint: FingerprintOption = None,
    as_json: AsJson = False,
) -> Outcome:
    """Verify the startup kit that came back and install it; what you edited stays."""
    from client.institution.provisioning.installation import install as run

    done = run(home, kit, fingerprint)
    lines = [f"{done.kit.name} is an institution of {done.kit.federation}; {done.change}"]
    lines += [f"kept as it was: {name}" for name in done.kept]
    if done.moved:
        lines.append(
            f"the kit names the coordinator {done.kit.coordinator}, institution.toml "
            f"{done.settings.coordinator}: edit it if it moved"
        )
    lines.append(f"Edit policy.toml, then: blindsight doctor --role institution --home {home}")
    data = {
        "name": done.kit.name,
        "federation": done.kit.federation,
        "coordinator": done.settings.coordinator,
        "kept": list(done.kept),
        "roster": change_data(done.change),
    }
    return Outcome("\n".join(lines), data)


@command
def update(roster: RosterArgument, home: HomeOption, as_json: AsJson = False) -> Outcome:
    """Install a newer roster; says who joined and who left."""
    return updated(home, roster)


COMMANDS: dict[str, Callable[..., None]] = {
    "request": request,
    "install": install,
    "update": update,
}
