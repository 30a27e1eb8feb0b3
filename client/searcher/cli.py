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
    from client.searcher.settings import keep_settings
    from protocol.provisioning.enrolment import install_kit
    from protocol.provisioning.home import Home

    party = Home(home)
    found, change = install_kit(party, kit, "searcher", fingerprint)
    keep_settings(party, found.coordinator)
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


@app.command()
@command
def institutions(home: HomeOption, as_json: AsJson = False) -> Outcome:
    """List the institutions that can be asked, as the directory has them and the roster allows."""
    from client.searcher.directory import open_directory
    from protocol.provisioning.home import Home

    listing = open_directory(Home(home)).listing()
    rows = [
        {
            "institution": one.institution,
            "release_id": one.release_id,
            "items": one.items,
            "reach": "relay" if one.by_relay else one.address,
        }
        for one in listing.offers
    ]
    lines = [
        f"{row['institution']}: {row['items']:,} items and more, release {row['release_id']}, "
        + ("by relay" if row["reach"] == "relay" else f"at {row['reach']}")
        for row in rows
    ]
    lines += [f"not {name}: {error.message}" for name, error in listing.notes.items()]
    notes = {name: error.message for name, error in listing.notes.items()}
    text = "\n".join(lines) or "the directory lists no institution"
    return Outcome(text, {"institutions": rows, "refused": notes})
