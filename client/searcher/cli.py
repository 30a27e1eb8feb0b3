"""The searcher's commands for joining a federation."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from protocol.provisioning.spoken import (
    FingerprintOption,
    KitArgument,
    NameOption,
    RosterArgument,
    change_data,
    requested,
    updated,
)
from protocol.terminal import AsJson, Outcome, command, say

if TYPE_CHECKING:
    from client.searcher.profile import Profile

app = typer.Typer(help="Join a federation as a searcher.", no_args_is_help=True)

HomeOption = Annotated[
    Path | None,
    typer.Option(help="Your folder. (default: $BLINDSIGHT_PROFILE, else ~/.config/blindsight)"),
]


@app.command()
@command
def request(name: NameOption, home: HomeOption = None, as_json: AsJson = False) -> Outcome:
    """Make this searcher's key, and the request for a certificate that leaves."""
    return requested(_profile(home).root, name, [])


@app.command()
@command
def install(
    kit: KitArgument,
    home: HomeOption = None,
    fingerprint: FingerprintOption = None,
    as_json: AsJson = False,
) -> Outcome:
    """Verify the startup kit that came back and install it; setup does it too."""
    profile = _profile(home)
    text, data = _installed(profile, kit, fingerprint)
    return Outcome(f"{text}\nGo on: blindsight searcher setup --home {profile.root}", data)


@app.command()
@command
def setup(
    kit: Annotated[
        Path | None, typer.Argument(help="The startup kit, where none is installed yet.")
    ] = None,
    home: HomeOption = None,
    fingerprint: FingerprintOption = None,
    directory: Annotated[
        str | None, typer.Option(help="HOST:PORT of the directory, if not the kit's host and 8444.")
    ] = None,
    as_json: AsJson = False,
) -> Outcome:
    """Make ready to search: kit, directory, signed release, and a first question.

    That question is encrypted, of chance, and charged like any other at the one who answers it.
    """
    from client.searcher.preflight import make_ready
    from client.searcher.settings import set_directory

    profile = _profile(home)
    if kit is not None:
        say(_installed(profile, kit, fingerprint)[0])
    if directory is not None:
        profile.read_authority()  # a folder without a kit has no directory
        set_directory(profile, directory)
    return make_ready(profile)


@app.command()
@command
def update(roster: RosterArgument, home: HomeOption = None, as_json: AsJson = False) -> Outcome:
    """Install a newer roster; says who joined and who left."""
    return updated(_profile(home).root, roster)


@app.command()
@command
def institutions(home: HomeOption = None, as_json: AsJson = False) -> Outcome:
    """List the institutions that can be asked, as the directory has them and the roster allows."""
    listing = _profile(home).directory().listing()
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


def _profile(home: Path | None) -> "Profile":
    from client.searcher.profile import Profile

    return Profile.open(home)


def _installed(
    profile: "Profile", kit: Path, fingerprint: str | None
) -> tuple[str, dict[str, Any]]:
    from client.searcher.settings import keep_settings
    from protocol.provisioning.enrolment import install_kit

    found, change = install_kit(profile, kit, "searcher", fingerprint)
    keep_settings(profile, found.coordinator)
    data = {
        "name": found.name,
        "federation": found.federation,
        "credentials": str(profile.identity),
        "roster": change_data(change),
    }
    return f"{found.name} is a searcher of {found.federation}; {change}", data
