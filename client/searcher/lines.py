"""Results as text for a terminal: as pictures where it can show them, else a line for each.

Captions, ids and notes come from institutions. A caption may hold the escape sequences with which
a terminal is told to clear its screen, fill the clipboard or name a link, so none gets there raw.
"""

import shutil
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from client.searcher.results import Results

_JOINERS = "\u200c\u200d"
"""Of no width, harmless, and needed to write Persian and to draw many emoji."""

_SEEN = """\
An institution saw that a search came and when, ciphertext under a key of its own, and then which
items were asked for, the wanted ones hidden among decoys. It saw no words, no picture of yours and
no score. The coordinator saw nothing of it; where its relay leads to an institution it carried
TLS that it cannot read."""


def printable(text: str) -> str:
    r"""Return foreign text on one line, fit for a terminal.

    White space becomes a blank; control characters, those that turn the direction of writing and
    all else that cannot be seen are written out (``\x1b``).
    """
    return "".join(map(_printable, text))


def _printable(letter: str) -> str:
    if letter.isprintable() or letter in _JOINERS:
        return letter
    return " " if letter.isspace() else letter.encode("unicode_escape").decode()


def picture_columns(wanted: bool | None = None) -> int | None:
    """Return how many columns pictures can take on standard output; None where none are drawn.

    ``wanted`` draws them whatever it is, or not at all; None where it is a terminal that knows
    true colour.
    """
    if wanted is False or (wanted is None and not sys.stdout.isatty()):
        return None
    from rich.console import Console

    console = Console()
    if wanted is None and (console.color_system != "truecolor" or console.no_color):
        return None
    return shutil.get_terminal_size().columns


def listing(results: "Results", width: int | None) -> str:
    """What was found: pictures over ``width`` columns, or a line for each if it is None."""
    if width is not None:
        from client.searcher.mosaic import mosaic

        return mosaic(results, width)
    return "\n".join(
        f"{place:>3}  {one.score:+.4f}  {one.institution:<16} #{one.position:<6} "
        f"{printable(one.caption)}".rstrip()
        for place, one in enumerate(results, 1)
    )


def account(results: "Results") -> str:
    """Who answered, how soon, and what crossed the wire, in a line."""
    up = sum(one.upload_bytes for one in results.traffic.values())
    down = sum(one.download_bytes for one in results.traffic.values())
    count = len(results.answered)
    return (
        f"{count} institution{'s' * (count != 1)} answered in "
        f"{results.milliseconds['total']:.0f} ms; {up:,} bytes of ciphertext "
        f"went out, {down:,} bytes came back"
    )


def privacy(results: "Results") -> str:
    """What each party saw of a search, and what remains of the day's budgets, as a table."""
    head: tuple[str, ...] = (
        "institution",
        "bytes out",
        "bytes in",
        "items",
        "decoys",
        "keys",
        "left today",
    )
    rows = [head]
    for name, one in results.traffic.items():
        left = [
            f"{count:,} {what}"
            for count, what in ((one.questions_left, "questions"), (one.items_left, "items"))
            if count is not None
        ]
        keys = f"{one.keys_made} made, {one.keys_destroyed} destroyed"
        figures = (one.upload_bytes, one.download_bytes, one.items_asked, one.decoys)
        rows.append((name, *(f"{each:,}" for each in figures), keys, ", ".join(left) or "no limit"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([*lines, "", _SEEN])
