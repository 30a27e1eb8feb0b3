"""Turn what an experiment found into one self-contained HTML page that says if joining pays.

Every part of it may be missing: what was not measured is shown as a dash or as "not run". Names
and reasons come from strangers, so the template escapes everything and the page may load nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from simulations.experiment.comparison import Comparison, Model, mapping, mappings, mean
from simulations.report.charts import (
    DASH,
    Bar,
    Series,
    bar_chart,
    finite,
    line_chart,
    ticks,
    tone,
)
from simulations.report.figures import duration, number, percent, size
from simulations.report.templates import templates, write_html

_SHOWN = 20  # replies that were dropped
_TITLES = {
    "iid": "Data dealt like cards (iid)",
    "site": "Each site as the data name it (site)",
    "topics": "A topic for each institution (topics)",
}


def render(data: Mapping[str, Any]) -> str:
    """Return the page as HTML; the same data always give the same text."""
    found = [
        Comparison.read(str(name), one) for name, one in mapping(data.get("partitions")).items()
    ]
    return _TEMPLATES.get_template("experiment.html.j2").render(
        d=data,
        settings=mapping(data.get("settings")),
        comparisons=found,
        pictures=_pictures(found),
        curves=[
            (title, line_chart(title, _curves(found, key), show, share=share))
            for title, key, show, share in _CURVES
        ],
        title=_title,
        rows=lambda one: [one.central, one.federated, *one.alone],
        effort=_effort,
        dropped=_dropped(found),
        shown=_SHOWN,
        span=_span,
        points=_points,
    )


def write_page(path: Path, data: Mapping[str, Any]) -> None:
    """Write the page to ``path``: all of it or, with a StorageError, nothing."""
    write_html(path, render(data))


def _title(name: str) -> str:
    if name.startswith("dirichlet:"):
        return f"Topics shared out unevenly ({name})"
    return _TITLES.get(name, name)


def _pictures(found: Sequence[Comparison]) -> list[Markup]:
    """One chart for each partition, all to one scale so that they can be compared at a glance."""
    bars = [
        [
            _bar(one.central),
            _bar(one.federated, strong=True),
            *(_bar(single) for single in one.alone),
        ]
        for one in found
    ]
    ends = [finite(end) or 0.0 for chart in bars for bar in chart for end in (bar.value, bar.high)]
    top = ticks(0.0, max(ends, default=0.0))[-1]
    return [
        bar_chart(f"Recall@10, {one.name}", chart, percent, top=top)
        for one, chart in zip(found, bars, strict=True)
    ]


def _bar(model: Model, *, strong: bool = False) -> Bar:
    low, high = model.interval or (None, None)
    return Bar(model.name, model.recall, strong, low, high)


def _curves(found: Sequence[Comparison], key: str) -> list[Series]:
    """One line for each partition: the mean over the seeds that ran a round."""
    lines = []
    for index, one in enumerate(found):
        by_round: dict[float, list[object]] = {}
        for run in one.runs:
            for place, report in enumerate(mappings(run.get("rounds")), 1):
                at_round = finite(report.get("round"))
                by_round.setdefault(place if at_round is None else at_round, []).append(
                    report.get(key)
                )
        points = [(at_round, mean(values)) for at_round, values in sorted(by_round.items())]
        lines.append(Series(one.name, points, tone(index)))
    return lines


def _effort(one: Comparison) -> list[tuple[str, str]]:
    """What a round costs on average: label and value."""
    rounds = [report for run in one.runs for report in mappings(run.get("rounds"))]
    lost = sum(len(mapping(report.get("dropped"))) for report in rounds)
    return [
        ("Rounds a seed", number(len(rounds) / len(one.runs) if rounds else None)),
        ("Time a round", duration(mean([report.get("seconds") for report in rounds]))),
        ("Sent to institutions a round", size(mean([r.get("bytes_down") for r in rounds]))),
        ("Sent back a round", size(mean([r.get("bytes_up") for r in rounds]))),
        ("Replies dropped", number(lost if rounds else None)),
    ]


def _dropped(found: Sequence[Comparison]) -> list[tuple[str, str, str]]:
    """Where, who and why, for every reply that did not count."""
    return [
        (
            f"{one.name}, seed {number(run.get('seed'))}, round {number(report.get('round'))}",
            str(name),
            str(reason),
        )
        for one in found
        for run in one.runs
        for report in mappings(run.get("rounds"))
        for name, reason in mapping(report.get("dropped")).items()
    ]


def _span(interval: tuple[float, float] | None) -> str:
    return f"{percent(interval[0])} to {percent(interval[1])}" if interval else DASH


def _points(value: float | None, sign: str = "+") -> str:
    """A difference or deviation in points of a per cent."""
    return DASH if value is None else f"{100 * value:{sign}.1f}"


_CURVES: tuple[tuple[str, str, Callable[[object], str], bool], ...] = (
    ("Validation recall@10", "recall_at_10", percent, True),
    ("Training loss", "train_loss", number, False),
)
_TEMPLATES = templates(Path(__file__).parent)
