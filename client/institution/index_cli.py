"""The commands on an institution's index: made, kept in step, looked at, searched by its owner."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from client.institution.cli import Int8Option
from protocol.terminal import AsJson, Outcome, command, progress, say

if TYPE_CHECKING:
    from client.institution.indexed_folder import Report
    from protocol.model.embedder import Embedder

app = typer.Typer(help="Make, change, check and search your index.", no_args_is_help=True)

DataOption = Annotated[Path, typer.Option(help="Folder with metadata.jsonl and the images.")]
IndexOption = Annotated[Path, typer.Option(help="Folder of the index.")]
ReleaseOption = Annotated[Path, typer.Option(help="Folder of the model release.")]
PresetOption = Annotated[str, typer.Option(help="Parameter set: private or fast.")]
GoalOption = Annotated[
    str, typer.Option(help="What the chunk width shall make least: bytes or latency.")
]
UpOption = Annotated[float, typer.Option(help="A searcher's Mbit/s to you.")]
DownOption = Annotated[float, typer.Option(help="Your Mbit/s to a searcher.")]


@app.command()
@command
def build(
    data: DataOption,
    release: ReleaseOption,
    index: IndexOption,
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
    from client.institution.indexed_folder import IndexedFolder
    from protocol.params import preset_by_name
    from protocol.plan import Costs

    parameters, costs = preset_by_name(preset), Costs(up_mbit, down_mbit)
    embedder = _embedder(release, int8)
    with progress("embedding", None) as show:
        folder = IndexedFolder(data, index)
        return _told(folder.build(embedder, parameters, goal, costs, factory, show))


@app.command()
@command
def add(
    data: DataOption,
    release: ReleaseOption,
    index: IndexOption,
    names: Annotated[
        list[str] | None, typer.Argument(help="File names as in metadata.jsonl; default: all.")
    ] = None,
    int8: Int8Option = False,
    as_json: AsJson = False,
) -> Outcome:
    """Index images of the folder that are not in the index yet."""
    from client.institution.indexed_folder import IndexedFolder

    embedder = _embedder(release, int8)
    with progress("embedding", None) as show:
        return _told(IndexedFolder(data, index).add(embedder, names or (), show))


@app.command()
@command
def remove(
    index: IndexOption,
    names: Annotated[list[str], typer.Argument(help="File names as in metadata.jsonl.")],
    as_json: AsJson = False,
) -> Outcome:
    """Take images out of the index: none of their embeddings stays in it."""
    from client.institution.index_writer import IndexWriter
    from client.institution.indexed_folder import Report

    with IndexWriter(index) as writer:
        return _told(Report(writer.change(removed=names), removed=tuple(names)))


@app.command()
@command
def update(
    data: DataOption,
    release: ReleaseOption,
    index: IndexOption,
    int8: Int8Option = False,
    as_json: AsJson = False,
) -> Outcome:
    """Bring the index in step with the folder, or with another release."""
    from client.institution.indexed_folder import IndexedFolder

    embedder = _embedder(release, int8)
    with progress("embedding", None) as show:
        return _told(IndexedFolder(data, index).update(embedder, show))


@app.command()
@command
def info(index: IndexOption, as_json: AsJson = False) -> Outcome:
    """Say what the index holds."""
    from client.institution.index import Index

    opened = Index(index)
    manifest, layout = opened.manifest, opened.layout
    size = sum(path.stat().st_size for path in opened.folder.iterdir())
    found = {
        **manifest.model_dump(exclude={"checksums"}),
        "blocks": layout.blocks,
        "upload_bytes": layout.upload_bytes,
        "download_bytes": layout.download_bytes,
        "disk_bytes": size,
    }
    text = (
        f"{manifest.items:,} items of {manifest.dim} coordinates, epoch {manifest.epoch}\n"
        f"release {manifest.release_id}, preset {manifest.preset}, chunk width "
        f"{manifest.chunk_width}, {layout.blocks:,} blocks\n"
        f"own search: {manifest.factory}; {size / 1e6:,.1f} MB on disk"
    )
    return Outcome(text, found)


@app.command()
@command
def verify(
    index: IndexOption,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make anew what can be made from the embeddings.")
    ] = False,
    as_json: AsJson = False,
) -> Outcome:
    """Read every file and block against its checksum, and the blocks against the embeddings."""
    from client.institution.index import Index
    from client.institution.index_writer import IndexWriter

    opened = Index(index)
    if not repair:
        with progress("reading", None):
            opened.verify()
        return Outcome(
            f"{index} is whole: epoch {opened.manifest.epoch}, {opened.manifest.items:,} items",
            {"epoch": opened.manifest.epoch, "items": opened.manifest.items, "repaired": []},
        )
    with progress("repairing", None), IndexWriter(index) as writer:
        damaged = opened.damaged()
        opened.close()
        new = writer.repair().manifest
    text = f"made anew: {', '.join(damaged)}" if damaged else "nothing was damaged"
    found = {"epoch": new.epoch, "items": new.items, "repaired": damaged}
    return Outcome(f"{text}; epoch {new.epoch}", found)


@app.command()
@command
def search(
    index: IndexOption,
    release: ReleaseOption,
    sentence: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    image: Annotated[Path | None, typer.Option(help="Look for what this image shows.")] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with the images: their paths are printed.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many.")] = 10,
    int8: Int8Option = False,
    as_json: AsJson = False,
) -> Outcome:
    """Search your own images in plaintext, with a sentence or an image."""
    from client.institution.images import load_image
    from client.institution.own_search import own_search
    from protocol.errors import UsageError

    if (sentence is None) == (image is None):
        raise UsageError("expected a sentence or --image, and not both")
    embedder = _embedder(release, int8)
    asked = sentence if image is None else load_image(image, *embedder.fit)
    assert asked is not None
    return own_search(index, embedder, asked, k, data)


@app.command()
@command
def plan(
    items: Annotated[int, typer.Option(help="How many items.")],
    dim: Annotated[int, typer.Option(help="Width of an embedding.")] = 128,
    preset: PresetOption = "private",
    up_mbit: UpOption = 100.0,
    down_mbit: DownOption = 100.0,
    threads: Annotated[int, typer.Option(help="Threads for scoring.")] = 1,
    goal: GoalOption = "bytes",
    as_json: AsJson = False,
) -> Outcome:
    """Show what every chunk width costs, and which one the goal chooses."""
    from client.institution.planning import outcome
    from protocol.params import preset_by_name
    from protocol.plan import Costs, plans

    costs = Costs(up_mbit, down_mbit, threads)
    return outcome(plans(preset_by_name(preset), dim, items, costs), goal)


def _embedder(release: Path, int8: bool) -> "Embedder":
    from protocol.model.embedder import Embedder
    from protocol.model.release import read_release

    return Embedder(read_release(release), "int8" if int8 else "float32")


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
