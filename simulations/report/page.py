"""Turn the summary of a simulation into one self-contained HTML page.

Every part of the summary may be missing: what was not measured is shown as a dash or as
"not run". Names, captions and queries come from strangers, so the template escapes everything
and the page may load nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from simulations.report import figures, findings
from simulations.report.charts import bar_chart, line_chart, tone
from simulations.report.templates import templates, write_html


def render(summary: Mapping[str, Any]) -> str:
    """Return the report as HTML; the same summary always gives the same text."""
    tones = {name: tone(index) for index, name in enumerate(findings.institution_names(summary))}
    rows = findings.standings(summary)
    phases = findings.parts(summary, "encrypted", "phases_ms")
    seconds = findings.parts(summary, "seconds")
    return _TEMPLATES.get_template("report.html.j2").render(
        s=summary,
        tones=tones,
        headline=findings.headline(summary),
        figures=findings.large_figures(summary),
        verdict=findings.verdict(summary),
        standings=rows,
        joining=[findings.recall_bars(rows, cut) for cut in (1, 5, 10)],
        training=[
            (title, line_chart(title, findings.curves(summary, tones, key), show, share=share))
            for title, key, show, share in _CURVES
        ],
        effort=findings.effort(summary),
        phases=bar_chart("Milliseconds per query", phases, figures.milliseconds),
        seconds=bar_chart("Seconds by phase", seconds, figures.duration),
    )


def write_report(path: Path, summary: Mapping[str, Any]) -> None:
    """Write the report to `path`: all of it or, with a StorageError, nothing."""
    write_html(path, render(summary))


_CURVES: tuple[tuple[str, str, Callable[[object], str], bool], ...] = (
    ("Training loss", "train_loss", figures.number, False),
    ("Validation recall@10", "recall_at_10", figures.percent, True),
)

_TEMPLATES = templates(Path(__file__).parent)
