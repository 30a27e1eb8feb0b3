"""How the commands of institutions and searchers say what they did: the same words for both."""

from pathlib import Path
from typing import Annotated, Any

import typer

from protocol.terminal import Outcome

HomeOption = Annotated[Path, typer.Option(help="Folder of this party; made if it is missing.")]
NameOption = Annotated[str, typer.Option(help="Its name: small letters, digits and hyphens.")]
KitArgument = Annotated[Path, typer.Argument(help="The startup kit: kit.tar.")]
RosterArgument = Annotated[Path, typer.Argument(help="The coordinator's current roster.json.")]
FingerprintOption = Annotated[
    str | None,
    typer.Option(help="The fingerprint as you were told it by telephone or in person."),
]


def requested(root: Path, name: str, hosts: list[str]) -> Outcome:
    """Make a key and a request in the folder ``root``; say what to do with it."""
    from protocol.provisioning.enrolment import request_certificate
    from protocol.provisioning.home import Home

    home = Home(root)
    request = request_certificate(home, name, hosts)
    fingerprint = request.identity.fingerprint
    return Outcome(
        f"{home.request}\n{fingerprint}\n"
        "Send the file to the coordinator; tell them the fingerprint by telephone or in person.\n"
        "The private key stays here.",
        {"request": str(home.request), "fingerprint": fingerprint, "hosts": list(request.hosts)},
    )


def updated(root: Path, roster: Path) -> Outcome:
    """Install a newer roster in the folder ``root``; say who joined and who left."""
    from protocol.provisioning.enrolment import update_roster
    from protocol.provisioning.home import Home

    change = update_roster(Home(root), roster)
    return Outcome(str(change), change_data(change))


def change_data(change: Any) -> dict[str, Any]:
    """A change of the roster, for programs."""
    return {"serial": change.serial, "joined": list(change.joined), "left": list(change.left)}
