"""The templates of pages that stand alone: they escape everything and may load nothing.

``page.html.j2`` is the frame that every page extends, ``style.css.j2`` its style sheet; the
frame's security policy forbids scripts and every address.
"""

from __future__ import annotations

from pathlib import Path

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from protocol.files import write_atomically
from simulations.report import figures
from simulations.report.charts import DASH


def templates(folder: Path) -> Environment:
    """Return the templates of ``folder``, which may extend the frame; None shows as a dash."""
    environment = Environment(
        loader=FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: (
            DASH if value is None or isinstance(value, ChainableUndefined) else value
        ),
    )
    environment.filters.update(
        number=figures.number,
        percent=figures.percent,
        milliseconds=figures.milliseconds,
        duration=figures.duration,
        score=figures.score,
        size=figures.size,
        tiny=figures.tiny,
        when=figures.when,
        plain=figures.plain,
        picture=figures.picture,
    )
    return environment


def write_html(path: Path, html: str) -> None:
    """Write a page to ``path``: all of it or, with a StorageError, nothing."""
    # A lone surrogate in a stranger's text has no UTF-8, but it has a number.
    write_atomically(path, html.encode("utf-8", "xmlcharrefreplace"))
