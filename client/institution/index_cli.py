"""The commands that change an institution's index; with those that only look (index_look.py)."""

from typing import TYPE_CHECKING, Annotated

import typer

from client.institution.cli import Int8Option
from client.institution.index_flags import (
    DataOption,
    DownOption,
    GoalOption,
    HomeOption,
    IndexOption,
    IndexTarget,
    PresetOption,
    ReleaseOption,
    UpOption,
)
from client.institution.index_look import LOOKING
from protocol.terminal import AsJson, Outcome, command, progress, say

if TYPE_CHECKING:
    from client.institution.indexed_folder import Report

app = typer.Typer(help="Make, change, check and search your index.", no_args_is_help=True)


@app.command()
@command
def build(
    home: HomeOption = None,
    data: DataOption = None,
    release: ReleaseOption = None,
    index: IndexOption = None,
    preset: PresetOption = "private",
    goal: GoalOption = "bytes",
    up_mbit: UpOption = 100.0,
    down_mbit: DownOption = 100.0,
    factory: Annotated[
        str, typer.Option(help="FAISS's name of an index for your own search: IVF256,Flat …")
    ] = "Flat",
    int8: Int8Option = False,
    as_json: AsJson = False,
) -> Outcome:
    """Embed every image of a folder and pack the index; goes on where it was killed."""
    from protocol.params import preset_by_name
    from protocol.plan import Costs

    parameters, costs = preset_by_name(preset), Costs(up_mbit, down_mbit)
    target = IndexTarget(home, index, data, release)
    folder, embedder = target.folder, target.embedder(int8, newest=True)
    with progress("embedding", None) as show:
        return _told(folder.build(embedder, parameters, goal, costs, factory, show))


@app.command()
@command
def add(
    names: Annotated[
        list[str] | None, typer.Argument(help="File names as in metadata.jsonl; default: all.")
    ] = None,
    home: HomeOption = None,
    data: DataOption = None,
    release: ReleaseOption = None,
    index: IndexOption = None,
    int8: Int8Option = False,
    as_json: AsJson = False,
) -> Outcome:
    """Index images of the folder that are not in the index yet."""
    target = IndexTarget(home, index, data, release)
    folder, embedder = target.folder, target.embedder(int8)
    with progress("embedding", None) as show:
        return _told(folder.add(embedder, names or (), show))


@app.command()
@command
def remove(
    names: Annotated[list[str], typer.Argument(help="File names as in metadata.jsonl.")],
    home: HomeOption = None,
    index: IndexOption = None,
    as_json: AsJson = False,
) -> Outcome:
    """Take images out of the index: none of their embeddings stays in it."""
    from client.institution.index_writer import IndexWriter
    from client.institution.indexed_folder import Report

    with IndexWriter(IndexTarget(home, index).index) as writer:
        return _told(Report(writer.change(removed=names), removed=tuple(names)))


@app.command()
@command
def update(
    home: HomeOption = None,
    data: DataOption = None,
    release: ReleaseOption = None,
    index: IndexOption = None,
    int8: Int8Option = False,
    as_json: AsJson = False,
) -> Outcome:
    """Bring the index in step with the folder, or with another release."""
    target = IndexTarget(home, index, data, release)
    folder, embedder = target.folder, target.embedder(int8, newest=True)
    with progress("embedding", None) as show:
        return _told(folder.update(embedder, show))


for _look in LOOKING:
    app.command()(_look)


def _told(report: "Report") -> Outcome:
    for skip in report.skipped:
        say(f"skipped {skip}")
    manifest, layout = report.index.manifest, report.index.layout
    return Outcome(
        f"{manifest.items:,} images indexed under release {manifest.release_id}, epoch "
        f"{manifest.epoch}: {len(report.added):,} added, {len(report.removed):,} removed, "
        f"{len(report.changed):,} changed; {len(report.skipped):,} skipped",
        {
            "items": manifest.items,
            "epoch": manifest.epoch,
            "release_id": manifest.release_id,
            "added": len(report.added),
            "removed": len(report.removed),
            "changed": len(report.changed),
            "skipped": [str(skip) for skip in report.skipped],
            "upload_bytes": layout.upload_bytes,
            "download_bytes": layout.download_bytes,
        },
    )
