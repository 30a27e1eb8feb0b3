"""The commands on an institution's own data; nothing of it leaves the machine."""

from pathlib import Path
from typing import Annotated

import typer

from protocol.terminal import AsJson, Outcome, command, progress, say

data_app = typer.Typer(help="Look at your images and captions.", no_args_is_help=True)


@data_app.callback()
def _group() -> None:
    """Keep ``inspect`` a command of its own name while it is the only one."""


@data_app.command()
@command
def inspect(
    data: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder of images, or the file that describes it.")
    ],
    group_key: Annotated[
        str, typer.Option(help="What names the patient or product in the metadata.")
    ] = "group",
    every: Annotated[
        bool, typer.Option("--all", help="Decode every image instead of 1,000.")
    ] = False,
    sheet: Annotated[
        Path | None, typer.Option(help="Write sample images with captions to this HTML file.")
    ] = None,
    as_json: AsJson = False,
) -> Outcome:
    """Show what a folder of images is taken for, what is in it, and what would be skipped."""
    from client.institution.inspection import SAMPLE, inspect_folder, write_sheet
    from client.institution.pairs import read_pairs

    with progress("reading", None):
        folder = read_pairs(data, group_key)
    count = len(folder.pairs) if every else min(SAMPLE, len(folder.pairs))
    with progress("decoding images", count) as show:
        inspection = inspect_folder(folder, count, show)
    if sheet is not None:
        write_sheet(folder, sheet)
        say(f"pictures: {sheet}")
    return inspection.outcome()
