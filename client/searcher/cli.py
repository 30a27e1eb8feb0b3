"""The searcher's commands for joining a federation."""

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

app = typer.Typer(help="Join a federation as a searcher.", no_args_is_help=True)


@app.command()
@command
def request(home: HomeOption, name: NameOption, as_json: AsJson = False) -> Outcome:
    """Make this searcher's key, and the request for a certificate that leaves."""
    return requested(home, name, [])


@app.command()
@command
def install(
    kit: KitArgument,
    home: HomeOption,
    fingerprint: FingerprintOption = None,
    as_json: AsJson = False,
) -> Outcome:
    """Verify the startup kit that came back and install it."""
    from protocol.provisioning.enrolment import install_kit
    from protocol.provisioning.home import Home

    party = Home(home)
    found, change = install_kit(party, kit, "searcher", fingerprint)
    return Outcome(
        f"{found.name} is a searcher of {found.federation}; {change}\n"
        f"Search with --credentials {party.identity}",
        {
            "name": found.name,
            "federation": found.federation,
            "credentials": str(party.identity),
            "roster": change_data(change),
        },
    )


@app.command()
@command
def update(roster: RosterArgument, home: HomeOption, as_json: AsJson = False) -> Outcome:
    """Install a newer roster; says who joined and who left."""
    return updated(home, roster)
