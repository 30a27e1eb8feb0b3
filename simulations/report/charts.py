"""Inline SVG charts that need no script and no style but the report's own.

Positions across are percentages and positions down are pixels: a chart fills whatever width
it is given and its lettering keeps one size, on a telephone as on paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

from markupsafe import Markup

DASH = "\u2013"
TONES = 8  # colours in the style sheet, .s0 to .s7

_LEFT, _RIGHT_LABELLED, _RIGHT = 11.0, 75.0, 97.0
_TOP, _BOTTOM, _HEIGHT = 14.0, 204.0, 248
_LABEL_GAP = 16.0
_DOTS = 24  # with more points than this, dots would hide the line
_ROW = 38


@dataclass(frozen=True)
class Series:
    """One line: a name, (x, y) points of which any y may be missing, and a colour class."""

    name: str
    points: Sequence[tuple[float, object]]
    tone: str = "s0"


@dataclass(frozen=True)
class Bar:
    """One bar: a label, a value that may be missing, and whether the eye should go there.

    A whisker is drawn from ``low`` to ``high`` where both are known.
    """

    label: str
    value: object
    strong: bool = False
    low: object = None
    high: object = None


def finite(value: object) -> float | None:
    """Return the value as a float a chart can place, or None where there is none."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    number = float(value)
    return number if abs(number) < 1e100 else None  # false for NaN as well


def tone(index: int) -> str:
    """Return the classes of the index-th series: a colour, then the same colours dashed."""
    return f"s{index % TONES}" + (" dashed" if index // TONES % 2 else "")


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return round values, a constant step apart, that enclose low and high."""
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-9):
        low, high = low - 0.5 * (abs(low) or 1), high + 0.5 * (abs(high) or 1)
    raw = (high - low) / count
    unit = 10.0 ** math.floor(math.log10(raw))
    step = unit * next(m for m in (1, 2, 5, 10) if m * unit >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, last + 1)]


def line_chart(
    title: str,
    series: Sequence[Series],
    show: Callable[[object], str],
    *,
    across: str = "round",
    share: bool = False,
) -> Markup:
    """Draw one line per series; a missing value breaks its line and nothing else.

    Shares are drawn from zero and their axis is in per cent.
    """
    runs = [_runs(one.points) for one in series]
    known = [point for run in runs for part in run for point in part]
    if not known:
        return Markup('<p class="nodata">{}: no values.</p>').format(title)
    labelled = len(series) <= TONES
    dotted = len({x for x, _ in known}) <= _DOTS
    right = _RIGHT_LABELLED if labelled else _RIGHT
    xs, ys = [x for x, _ in known], [y for _, y in known]
    grid = ticks(min(0.0, *ys) if share else min(ys), max(ys))
    left_most, width = min(xs), max(xs) - min(xs)

    def at(x: float, y: float) -> tuple[float, float]:
        along = (x - left_most) / width if width else 0.5
        rise = (y - grid[0]) / (grid[-1] - grid[0])
        return _LEFT + along * (right - _LEFT), _BOTTOM - rise * (_BOTTOM - _TOP)

    out = [_rule(name, at(0.0, tick)[1], right) for tick, name in _named(grid, share)]
    out += [_across(tick, at(tick, grid[0])[0]) for tick in _round_ticks(xs)]
    out.append(
        Markup('<text class="axis" x="{:.2f}%" y="{}" text-anchor="middle">{}</text>').format(
            (_LEFT + right) / 2, _HEIGHT - 6, across
        )
    )
    ends: list[tuple[float, Series]] = []
    for one, run in zip(series, runs, strict=True):
        placed = [[at(x, y) for x, y in part] for part in run]
        out += [_path(part, one.tone) for part in placed]
        out += [
            Markup(
                '<circle class="dot {}" cx="{:.2f}%" cy="{:.1f}" r="2.6">'
                "<title>{}, {} {:g}: {}</title></circle>"
            ).format(one.tone, *at(x, y), one.name, across, x, show(y))
            for part in run
            for x, y in part
            if dotted or len(part) == 1
        ]
        if placed:
            ends.append((placed[-1][-1][1], one))
    if labelled:
        out += _end_labels(ends, right)
    spoken = [
        f"{one.name} ends at {show(run[-1][-1][1])}"
        for one, run in zip(series, runs, strict=True)
        if run
    ]
    drawn = _svg(_HEIGHT, f"{title}. {'; '.join(spoken)}.", out)
    return drawn if labelled else drawn + _legend(series)


def bar_chart(
    title: str, bars: Sequence[Bar], show: Callable[[object], str], *, top: float | None = None
) -> Markup:
    """Draw one horizontal bar per value, from zero to `top` (the largest value by default)."""
    values = [finite(bar.value) for bar in bars]
    known = [value for value in values if value is not None]
    if not known:
        return Markup('<p class="nodata">{}: no values.</p>').format(title)
    full = top or max(known)
    out = []
    for row, (bar, value) in enumerate(zip(bars, values, strict=True)):
        y = row * _ROW
        share = min(1.0, max(0.0, (value or 0.0) / full)) if full > 0 else 0.0
        weight = "strong" if bar.strong else "plain"
        out.append(
            Markup(
                '<text class="name {0}" x="0" y="{1}">{2}</text>'
                '<text class="value {0}" x="100%" y="{1}" text-anchor="end">{3}</text>'
                '<rect class="track" x="0" y="{4}" width="100%" height="8" rx="4"/>'
            ).format(weight, y + 14, _shorten(bar.label, 22), show(bar.value), y + 21)
        )
        if share:
            out.append(
                Markup(
                    '<rect class="bar {}" x="0" y="{}" width="{:.2f}%" height="8" rx="4"/>'
                ).format(weight, y + 21, 100 * share)
            )
        out += _whisker(bar, y + 25, full)
    spoken = "; ".join(_spoken(bar, show) for bar in bars)
    return _svg(len(bars) * _ROW, f"{title}. {spoken}.", out)


def _svg(height: int, spoken: str, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="chart" role="img" aria-label="{}" width="100%" height="{}">{}</svg>'
    ).format(spoken, height, Markup("").join(parts))


def _whisker(bar: Bar, y: int, full: float) -> list[Markup]:
    low, high = finite(bar.low), finite(bar.high)
    if low is None or high is None or full <= 0:
        return []
    ends = [100 * min(1.0, max(0.0, end / full)) for end in (low, high)]
    line = Markup('<line class="whisker" x1="{:.2f}%" x2="{:.2f}%" y1="{}" y2="{}"/>')
    return [
        line.format(*ends, y, y),
        *(line.format(end, end, y - 5, y + 5) for end in ends),
    ]


def _spoken(bar: Bar, show: Callable[[object], str]) -> str:
    said = f"{bar.label} {show(bar.value)}"
    if finite(bar.low) is None or finite(bar.high) is None:
        return said
    return f"{said}, from {show(bar.low)} to {show(bar.high)}"


def _runs(points: Sequence[tuple[float, object]]) -> list[list[tuple[float, float]]]:
    """Cut a series where values are missing."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, raw in points:
        y = finite(raw)
        if y is not None:
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _named(grid: Sequence[float], share: bool) -> list[tuple[float, str]]:
    """Write every tick with the same number of decimals."""
    scale, unit = (100.0, "\u202f%") if share else (1.0, "")
    decimals = math.ceil(-math.log10((grid[1] - grid[0]) * scale) - 1e-9)
    if not -6 < decimals < 6:
        return [(tick, f"{tick * scale:.3g}{unit}") for tick in grid]
    return [(tick, f"{tick * scale:,.{max(0, decimals)}f}{unit}") for tick in grid]


def _rule(name: str, y: float, right: float) -> Markup:
    return Markup(
        '<line class="rule" x1="{0}%" x2="{1}%" y1="{2:.1f}" y2="{2:.1f}"/>'
        '<text class="axis" x="{3}%" y="{4:.1f}" text-anchor="end">{5}</text>'
    ).format(_LEFT, right, y, _LEFT - 1.5, y + 4, name)


def _across(tick: float, x: float) -> Markup:
    return Markup('<text class="axis" x="{:.2f}%" y="{}" text-anchor="middle">{:g}</text>').format(
        x, _BOTTOM + 18, tick
    )


def _round_ticks(xs: Sequence[float]) -> list[float]:
    low, high = min(xs), max(xs)
    inner = [tick for tick in ticks(low, high, 6) if low < tick < high and tick == int(tick)]
    step = inner[1] - inner[0] if len(inner) > 1 else 1.0
    return [low, *(t for t in inner if min(t - low, high - t) >= step / 2), *{high} - {low}]


def _path(part: Sequence[tuple[float, float]], tones: str) -> Markup:
    # Percentages are not allowed in a path, so it lives in a stretched box of 100 units.
    return Markup(
        '<svg x="0" y="0" width="100%" height="{0}" viewBox="0 0 100 {0}" '
        'preserveAspectRatio="none"><polyline class="line {1}" points="{2}"/></svg>'
    ).format(_HEIGHT, tones, " ".join(f"{x:.2f},{y:.1f}" for x, y in part))


def _end_labels(ends: Sequence[tuple[float, Series]], right: float) -> list[Markup]:
    """Name each line at its end, pushed apart so that no two names overlap."""
    ordered = sorted(ends, key=lambda end: (end[0], end[1].name))
    below = _BOTTOM - _LABEL_GAP * (len(ordered) - 1)
    out, y = [], 0.0
    for index, (end, one) in enumerate(ordered):
        y = max(y + _LABEL_GAP if index else _TOP, min(end, below + _LABEL_GAP * index))
        out.append(
            Markup(
                '<circle class="swatch {0}" cx="{1}%" cy="{2:.1f}" r="4"/>'
                '<text class="end" x="{1}%" dx="9" y="{3:.1f}">{4}</text>'
            ).format(one.tone, right + 3, y, y + 4, _shorten(one.name, 11))
        )
    return out


def _legend(series: Sequence[Series]) -> Markup:
    chip = Markup('<span class="chip"><i class="{}"></i><bdi>{}</bdi></span> ')
    return Markup('<p class="legend">{}</p>').format(
        Markup("").join(chip.format(one.tone, one.name) for one in series)
    )


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"
