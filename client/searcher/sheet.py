"""Results as lines, as data and as a page of pictures that needs nothing else."""

import os
import sys
import tempfile
import webbrowser
from base64 import b64encode
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from protocol.files import write_atomically
from protocol.terminal import Outcome, say

if TYPE_CHECKING:
    from jinja2 import Environment

    from client.searcher.results import Result, Results


def outcome(results: "Results", sheet: Path | None, shown: bool = False) -> Outcome:
    """Return what a search found, for people and for programs.

    The page of pictures is written to ``sheet``, and opened in the browser if it shall be shown.
    """
    for name, note in results.notes.items():
        say(f"{name}: {note.message}")
    data = results.to_dict()
    lines = [
        f"{place:>3}  {one.score:+.4f}  {one.institution:<16} #{one.position:<6} {one.caption}"
        for place, one in enumerate(results, 1)
    ]
    lines.append(
        f"{len(results.answered)} institutions answered in "
        f"{results.milliseconds['total']:.0f} ms; {data['upload_bytes']:,} bytes of ciphertext "
        f"went out, {data['download_bytes']:,} bytes came back"
    )
    if sheet is not None:
        write_sheet(sheet, results)
        lines.append(f"pictures: {sheet}")
    if shown:
        show(results)
    return Outcome("\n".join(lines), data | {"sheet": str(sheet) if sheet else None})


def write_sheet(path: Path, results: "Results") -> None:
    """Write a page of the pictures. Raises StorageError."""
    page = _environment().get_template("sheet.html.j2")
    write_atomically(path, page.render(title=str(results.query), results=list(results)))


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
