"""The commands of a federation for trying out, all of it on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from protocol.terminal import AsJson, Outcome, command

app = typer.Typer(
    help="A whole federation of real processes on this machine, for trying out.",
    no_args_is_help=True,
)

DirOption = Annotated[Path, typer.Option("--dir", help="Folder of all of it.")]


@app.command()
@command
def up(
    directory: DirOption = Path("poc"),
    institutions: Annotated[int, typer.Option(min=2, max=16, help="How many.")] = 3,
    scenes: Annotated[int, typer.Option(min=40, help="Captioned scenes to draw.")] = 600,
    seed: Annotated[int, typer.Option(min=0, help="The same seed, the same scenes.")] = 0,
    as_json: AsJson = False,
) -> Outcome:
    """Provision it, unless it is there; start it; return when every institution is online."""
    from simulations.poc.poc import Poc

    poc = Poc.open(directory)
    if not poc.made:
        poc.make(institutions, scenes, seed)
    poc.start()
    found = poc.status()
    text = f"{len(found['institutions'])} institutions are online in {directory}\n" + "\n".join(
        f"  blindsight {words}"
        for words in (
            f"train --home {poc.coordinator} --rounds 2",
            f"poc status --dir {directory}",
            f"poc down --dir {directory}; blindsight poc up --dir {directory}",
            f"searcher setup --home {poc.searcher}; blindsight ui --home {poc.searcher}",
            f"poc down --dir {directory}",
        )
    )
    return Outcome(text, found)


@app.command()
@command
def status(directory: DirOption = Path("poc"), as_json: AsJson = False) -> Outcome:
    """Show what runs, who is online, and how far training is."""
    from server.deployment.status import to_text
    from simulations.poc.poc import Poc

    found = Poc.open(directory).status()
    return Outcome(to_text(found), found)


@app.command()
@command
def down(
    directory: DirOption = Path("poc"),
    delete: Annotated[bool, typer.Option("--delete", help="Remove the folder as well.")] = False,
    as_json: AsJson = False,
) -> Outcome:
    """End every process of it."""
    from simulations.poc.poc import Poc

    poc = Poc.open(directory)
    ended = poc.stop()
    if delete:
        poc.delete()
    text = f"{ended} parties have stopped" + (f", {directory} is gone" if delete else "")
    return Outcome(text, {"stopped": ended, "deleted": delete})
