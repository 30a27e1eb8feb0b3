"""Thumbnails in a terminal that knows true colour: each character shows two pixels."""

import io
from collections.abc import Iterable
from typing import TYPE_CHECKING

from PIL import Image
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from rich_pixels import Pixels

from client.searcher.lines import printable
from protocol.errors import DataError

if TYPE_CHECKING:
    from client.searcher.results import Result

_SIDE = 26
_GAP = 2
_CAPTION_LINES = 2


def mosaic(results: "Iterable[Result]", width: int) -> str:
    """Return the pictures side by side over ``width`` columns, each with what is known of it.

    Thumbnails are decoded here: of foreign bytes nothing but colours reaches the terminal.
    """
    console = Console(
        file=io.StringIO(),
        width=width,
        force_terminal=True,
        color_system="truecolor",
        no_color=False,
    )
    side = max(1, min(_SIDE, width))
    cells = [_cell(console, place, one, side) for place, one in enumerate(results, 1)]
    across = max(1, (width + _GAP) // (side + _GAP))
    grid = Table.grid(padding=(0, _GAP, 1, 0), pad_edge=False)
    for _ in range(min(across, len(cells))):
        grid.add_column(width=side)
    for start in range(0, len(cells), across):
        grid.add_row(*cells[start : start + across])
    with console.capture() as captured:
        console.print(grid)
    return captured.get().rstrip()


def _cell(console: Console, place: int, one: "Result", side: int) -> RenderableType:
    known = f"{place}  {one.score:+.3f}  {one.institution}"
    caption = Text(printable(one.caption), style="dim").wrap(console, side)[:_CAPTION_LINES]
    return Group(_picture(one, side), Text(known, no_wrap=True, overflow="ellipsis"), *caption)


def _picture(one: "Result", side: int) -> RenderableType:
    if not one.thumbnail:
        return Text("no picture was released", style="dim italic")
    try:
        picture = one.picture()
    except DataError:
        return Text("the picture is damaged", style="dim italic")
    # A character holds two pixels, one above the other; a strip keeps a pixel of its short side.
    scale = side / max(picture.size)
    size = max(1, round(picture.width * scale)), 2 * max(1, round(picture.height * scale / 2))
    drawn: RenderableType = Pixels.from_image(picture.resize(size, Image.Resampling.LANCZOS))
    return drawn
