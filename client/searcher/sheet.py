"""Results as a page of pictures that needs nothing else, and as files."""

import io
import os
import sys
import tempfile
import webbrowser
from base64 import b64encode
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from client.searcher.lines import account, listing, picture_columns, printable
from protocol.errors import DataError
from protocol.files import write_atomically
from protocol.terminal import Outcome, say

if TYPE_CHECKING:
    from jinja2 import Environment

    from client.searcher.results import Result, Results


def outcome(
    results: "Results", sheet: Path | None, shown: bool = False, pictures: bool | None = None
) -> Outcome:
    """Return what a search found, for people and for programs.

    The page of pictures is written to ``sheet``, and opened in the browser if it shall be shown.
    ``pictures`` says whether they are drawn in the terminal; None for wherever it can.
    """
    for name, note in results.notes.items():
        say(f"{name}: {printable(note.message)}")
    width = picture_columns(pictures)
    lines = [listing(results, width), account(results)]
    if sheet is not None:
        write_sheet(sheet, results)
        lines.append(f"pictures: {sheet}")
    elif not shown and width is None and any(one.thumbnail for one in results):
        say("to see the pictures: --sheet FILE.html or --open")
    if shown:
        show(results)
    data = results.to_dict() | {"sheet": str(sheet) if sheet else None}
    return Outcome("\n".join(lines), data)


def write_sheet(path: Path, results: "Results") -> None:
    """Write a page of the pictures. Raises StorageError."""
    page = _environment().get_template("sheet.html.j2")
    write_atomically(path, page.render(title=str(results.query), results=list(results)))


def write_pictures(folder: Path, results: "Iterable[Result]") -> int:
    """Write the thumbnails to ``folder``, the best first by name; return how many there were.

    Each is decoded here and written anew, so that no other program meets a foreign file; those
    that are damaged are left out. Raises StorageError.
    """
    written = 0
    for place, one in enumerate(results, 1):
        try:
            picture = one.picture() if one.thumbnail else None
        except DataError as error:
            say(printable(error.message))
            continue
        if picture is not None:
            made = io.BytesIO()
            picture.save(made, "JPEG", quality=95)
            name = f"{place:03}-{one.institution}-{one.position}.jpg"
            write_atomically(folder / name, made.getvalue())
            written += 1
    return written


def fragment(results: "Iterable[Result]") -> str:
    """The pictures as a grid, for a notebook."""
    return _environment().get_template("grid.html.j2").render(results=list(results))


def show(results: "Results") -> None:
    """Show the pictures: as a grid in a notebook, elsewhere as a page in the browser.

    The page lies in this user's temporary files, readable by this user alone.
    """
    if "ipykernel" in sys.modules:
        from IPython.display import display

        display(results)  # type: ignore[no-untyped-call]
        return
    handle, name = tempfile.mkstemp(prefix="blindsight-", suffix=".html")
    os.close(handle)
    write_sheet(Path(name), results)
    webbrowser.open(Path(name).as_uri())


@lru_cache(1)
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    found = Environment(
        loader=PackageLoader("client.searcher"), autoescape=True, undefined=StrictUndefined
    )
    found.filters["base64"] = lambda data: b64encode(data).decode()
    return found
