"""The commands that look at an institution's index: what it holds, whether it is whole, a search.

``verify --repair`` alone may change it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

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
from protocol.terminal import AsJson, Outcome, command, progress


@command
def info(home: HomeOption = None, index: IndexOption = None, as_json: AsJson = False) -> Outcome:
    """Say what the index holds."""
    from client.institution.index import Index

    opened = Index(IndexTarget(home, index).index)
    manifest, layout = opened.manifest, opened.layout
    size = opened.disk_bytes
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


@command
def verify(
    home: HomeOption = None,
    index: IndexOption = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make anew what can be made from the embeddings.")
    ] = False,
    as_json: AsJson = False,
) -> Outcome:
    """Read every file and block against its checksum, and the blocks against the embeddings."""
    from client.institution.index import Index
    from client.institution.index_writer import IndexWriter

    root = IndexTarget(home, index).index
    opened = Index(root)
    if not repair:
        with progress("reading", None):
            opened.verify()
        return Outcome(
            f"{root} is whole: epoch {opened.manifest.epoch}, {opened.manifest.items:,} items",
            {"epoch": opened.manifest.epoch, "items": opened.manifest.items, "repaired": []},
        )
    with progress("repairing", None), IndexWriter(root) as writer:
        damaged = opened.damaged()
        opened.close()
        new = writer.repair().manifest
    text = f"made anew: {', '.join(damaged)}" if damaged else "nothing was damaged"
    found = {"epoch": new.epoch, "items": new.items, "repaired": damaged}
    return Outcome(f"{text}; epoch {new.epoch}", found)


@command
def search(
    sentence: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    image: Annotated[Path | None, typer.Option(help="Look for what this image shows.")] = None,
    home: HomeOption = None,
    index: IndexOption = None,
    release: ReleaseOption = None,
    data: DataOption = None,
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="How many.")] = 10,
    int8: Int8Option = False,
    as_json: AsJson = False,
) -> Outcome:
    """Search your own images in plaintext, with a sentence or an image; prints their paths."""
    from client.institution.images import load_image
    from client.institution.own_search import own_search
    from protocol.errors import UsageError

    if (sentence is None) == (image is None):
        raise UsageError("expected a sentence or --image, and not both")
    target = IndexTarget(home, index, data, release)
    root, embedder = target.index, target.embedder(int8)
    asked = sentence if image is None else load_image(image, *embedder.fit)
    assert asked is not None
    return own_search(root, embedder, asked, k, target.data)


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


LOOKING: tuple[Callable[..., None], ...] = (info, verify, search, plan)
