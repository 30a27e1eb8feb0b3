"""Turn the summary of a simulation into one self-contained HTML page.

Every part of the summary may be missing: what was not measured is shown as a dash or as
"not run". Names, captions and queries come from strangers, so the template escapes everything
and the page may load nothing.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jinja2 import ChainableUndefined, Environment, FileSystemLoader

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

_THIN = "\u202f"  # a narrow space that does not break


def render(summary: Mapping[str, Any]) -> str:
    """Return the report as HTML; the same summary always gives the same text."""
    tones = {name: tone(index) for index, name in enumerate(_names(summary))}
    rows = _standings(summary)
    phases, seconds = _at(summary, "encrypted", "phases_ms"), summary.get("seconds")
    return _ENVIRONMENT.get_template("report.html.j2").render(
        s=summary,
        tones=tones,
        headline=headline(summary),
        figures=_figures(summary),
        verdict=_verdict(summary),
        standings=rows,
        joining=[_recall_bars(rows, cut) for cut in (1, 5, 10)],
        training=[
            (title, line_chart(title, _curves(summary, tones, key), show, share=share))
            for title, key, show, share in _CURVES
        ],
        effort=_effort(summary),
        phases=bar_chart("Milliseconds per query", _parts(_mapping(phases)), milliseconds),
        seconds=bar_chart("Seconds by phase", _parts(_mapping(seconds)), duration),
    )


def write_report(path: Path, summary: Mapping[str, Any]) -> None:
    """Write the report to `path`: all of it or, if anything fails, nothing."""
    html = render(summary).encode("utf-8", "xmlcharrefreplace")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            file.write(html)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def number(value: object) -> str:
    """Show a count with separators, or any other number with four significant digits."""
    found = finite(value)
    if found is None:
        return DASH
    whole = found == int(found) or abs(found) >= 1000
    return f"{found:,.0f}" if whole and abs(found) < 1e15 else f"{found:.4g}"


def percent(value: object) -> str:
    """Show a share; only exactly all is 100 %, and only exactly nothing is 0 %."""
    found = finite(value)
    if found is None:
        return DASH
    if 0 < found < 0.0005:
        return f"<0.1{_THIN}%"
    if 0.9995 <= found < 1:
        return f">99.9{_THIN}%" if found >= 0.99995 else f"{100 * found:.2f}{_THIN}%"
    return f"{100 * found:.{0 if found in (0, 1) else 1}f}{_THIN}%"


def milliseconds(value: object) -> str:
    """Show a time given in milliseconds."""
    found = finite(value)
    if found is None:
        return DASH
    if found >= 10_000:
        return duration(found / 1000)
    return f"{found:,.{0 if found >= 100 else 1}f}{_THIN}ms"


def duration(value: object) -> str:
    """Show a time given in seconds."""
    found = finite(value)
    if found is None:
        return DASH
    if found < 59.95:
        return f"{found:.1f}{_THIN}s"
    minutes, rest = divmod(round(found), 60)
    return f"{minutes:,}{_THIN}min {rest}{_THIN}s"


def size(value: object) -> str:
    """Show a number of bytes in decimal units."""
    found = finite(value)
    if found is None:
        return DASH
    for unit in ("B", "kB", "MB", "GB"):
        if abs(found) < (1000 if unit == "B" else 999.5):
            digits = 0 if unit == "B" or abs(found) >= 99.95 else 1
            return f"{found:.{digits}f}{_THIN}{unit}"
        found /= 1000
    return f"{found:,.1f}{_THIN}TB"


def score(value: object) -> str:
    """Show a similarity to three places."""
    found = finite(value)
    return DASH if found is None else f"{found:.3f}"


def tiny(value: object) -> str:
    """Show a small error as a power of ten."""
    found = finite(value)
    if not found:
        return number(value)
    mantissa, exponent = f"{found:.1e}".split("e")
    raised = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa}{_THIN}\u00d7{_THIN}10{raised}"


def when(value: object) -> str:
    """Show an ISO 8601 time as people write it, and anything else as it is."""
    try:
        moment = datetime.fromisoformat(str(value))
    except ValueError:
        return str(value or DASH)
    return f"{moment.day} {moment:%B %Y, %H:%M} {moment.tzname() or ''}".rstrip()


def plain(value: object) -> str:
    """Show a setting of any kind."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list | tuple):
        return ", ".join(plain(one) for one in value) or DASH
    if isinstance(value, float) and finite(value) is None:
        return DASH
    return DASH if value in (None, "") else str(value)


def picture(data: object) -> str | None:
    """Return a data address for JPEG, PNG or WebP bytes, and None for anything else."""
    if not isinstance(data, bytes | bytearray | memoryview):
        return None
    raw = bytes(data)
    if raw.startswith(b"\xff\xd8\xff"):
        kind = "jpeg"
    elif raw.startswith(b"\x89PNG\r\n\x1a\n"):
        kind = "png"
    elif raw[:4] == b"RIFF" and raw[8:12] == b"WEBP":
        kind = "webp"
    else:
        return None
    return f"data:image/{kind};base64,{b64encode(raw).decode('ascii')}"


def headline(summary: Mapping[str, Any]) -> str:
    """Say in one sentence what the simulation found."""
    count = len(_list(_at(summary, "institutions")))
    recall = finite(_at(summary, "retrieval", "federated", "recall_at_10"))
    chance = finite(_at(summary, "retrieval", "chance", "recall_at_10"))
    overlap = _at(summary, "encrypted", "overlap_at_10")
    where = {0: "the federation", 1: "one institution"}.get(
        count, f"{count} institutions that show each other nothing"
    )
    if recall is None:
        said = f"A sentence searches the pictures of {where}"
    else:
        said = f"Across {where}, a sentence finds a right picture among its first ten "
        said += f"{percent(recall)} of the time"
        said += f" (by chance {percent(chance)})" if chance is not None else ""
    if finite(overlap) is None:
        return f"{said}."
    return f"{said}, and under encryption {percent(overlap)} of the first ten stay the same."


def _figures(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the large figures: label, value, and what stands beneath."""
    federated, chance = (
        _at(summary, "retrieval", model, "recall_at_10") for model in ("federated", "chance")
    )
    encrypted = _mapping(_at(summary, "encrypted"))
    up, down = (_total(encrypted, key) for key in ("upload_bytes", "download_bytes"))
    held = sum(
        int(finite(one.get(split)) or 0)
        for one in _list(summary.get("institutions"))
        for split in ("train", "val", "test")
    )
    shown = {
        bytes(result["thumbnail"])
        for example in _list(summary.get("examples"))
        for result in _list(example.get("results"))
        if picture(result.get("thumbnail"))
    }
    return [
        ("Right picture in the first ten", percent(federated), f"by chance {percent(chance)}"),
        (
            "Encrypted top ten = plaintext",
            percent(encrypted.get("overlap_at_10")),
            f"over {number(encrypted.get('queries'))} queries",
        ),
        ("Time per query", milliseconds(encrypted.get("query_ms")), "all institutions, encrypted"),
        (
            "Traffic per query",
            size(up + down if up is not None and down is not None else None),
            f"{size(up)} up, {size(down)} down",
        ),
        (
            "Pictures nobody else saw",
            number(max(0, held - len(shown)) if held else None),
            f"of {number(held)}; the {number(len(shown))} shown here were released",
        ),
    ]


def _total(encrypted: Mapping[str, Any], key: str) -> float | None:
    whole = finite(encrypted.get(key))
    if whole is not None:
        return whole
    parts = [finite(one.get(key)) for one in _list(encrypted.get("institutions"))]
    return sum(part for part in parts if part is not None) if any(parts) else None


def _standings(summary: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """Return (kind, name, figures) of every model that is compared."""
    retrieval = _mapping(summary.get("retrieval"))
    alone = [
        ("local", f"{one.get('name', DASH)} alone", one) for one in _list(retrieval.get("local"))
    ]
    return [
        ("federated", "Federated", _mapping(retrieval.get("federated"))),
        ("central", "Central, pooled data", _mapping(retrieval.get("central"))),
        *(alone or [("local", "Each institution alone", {})]),
        ("chance", "Chance", _mapping(retrieval.get("chance"))),
    ]


def _recall_bars(rows: list[tuple[str, str, Mapping[str, Any]]], cut: int) -> tuple[str, str]:
    # One scale for the three charts, so that they can be compared at a glance.
    cuts = ("recall_at_1", "recall_at_5", "recall_at_10")
    top = max((finite(figures.get(key)) or 0.0 for _, _, figures in rows for key in cuts))
    bars = [
        Bar(name, figures.get(f"recall_at_{cut}"), kind == "federated")
        for kind, name, figures in rows
        if figures
    ]
    title = f"Recall@{cut}"
    return title, bar_chart(title, bars, percent, top=ticks(0.0, top)[-1])


def _verdict(summary: Mapping[str, Any]) -> str | None:
    """Say what joining gained over the best institution alone, and lost against pooling."""
    mine = finite(_at(summary, "retrieval", "federated", "recall_at_10"))
    alone = [
        (found, str(one.get("name", DASH)))
        for one in _list(_at(summary, "retrieval", "local"))
        if (found := finite(one.get("recall_at_10"))) is not None
    ]
    pooled = finite(_at(summary, "retrieval", "central", "recall_at_10"))
    if mine is None or not (alone or pooled is not None):
        return None
    said = []
    if alone:
        best, name = max(alone)
        said.append(f"{_difference(mine - best)} the best institution alone ({name})")
    if pooled is not None:
        said.append(f"{_difference(mine - pooled)} a model trained on the pooled data")
    return f"By recall@10 the federated model is {' and '.join(said)}."


def _difference(gap: float) -> str:
    points = f"{100 * abs(gap):.1f}"
    if points == "0.0":
        return "level with"
    return f"{points} points {'above' if gap > 0 else 'below'}"


def _curves(summary: Mapping[str, Any], tones: Mapping[str, str], key: str) -> list[Series]:
    rounds = _list(summary.get("rounds"))
    xs = [finite(one.get("round")) for one in rounds]
    return [
        Series(
            name,
            [
                (index + 1.0 if x is None else x, _at(one, "institutions", name, key))
                for index, (x, one) in enumerate(zip(xs, rounds, strict=True))
            ],
            tones[name],
        )
        for name in tones
        if any(name in _mapping(one.get("institutions")) for one in rounds)
    ]


def _effort(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a round costs on average: label and value."""
    rounds = _list(summary.get("rounds"))

    def mean(key: str) -> float | None:
        known = [found for one in rounds if (found := finite(one.get(key))) is not None]
        return sum(known) / len(known) if known else None

    dropped = sum(len(_mapping(one.get("dropped"))) for one in rounds)
    return [
        ("Rounds", number(len(rounds))),
        ("Time per round", duration(mean("seconds"))),
        ("Sent to institutions per round", size(mean("bytes_down"))),
        ("Sent back per round", size(mean("bytes_up"))),
        ("Replies dropped", number(dropped)),
    ]


def _parts(values: Mapping[str, Any]) -> list[Bar]:
    known = {name: value for name, value in values.items() if name != "total"}
    largest = max((finite(value) or 0.0 for value in known.values()), default=0.0)
    return [Bar(name, value, finite(value) == largest) for name, value in known.items()]


def _names(summary: Mapping[str, Any]) -> list[str]:
    """List every institution once, in the order in which it is first mentioned."""
    named = [str(one.get("name")) for one in _list(summary.get("institutions"))]
    for one in _list(summary.get("rounds")):
        named += _mapping(one.get("institutions"))
    for example in _list(summary.get("examples")):
        named += [str(one.get("institution")) for one in _list(example.get("results"))]
    return list(dict.fromkeys(named))


def _at(summary: object, *path: str) -> Any:
    for key in path:
        summary = _mapping(summary).get(key)
    return summary


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: object) -> list[Mapping[str, Any]]:
    return list(value) if isinstance(value, list | tuple) else []


_CURVES: tuple[tuple[str, str, Callable[[object], str], bool], ...] = (
    ("Training loss", "train_loss", number, False),
    ("Validation recall@10", "recall_at_10", percent, True),
)

_ENVIRONMENT = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=ChainableUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    finalize=lambda value: (
        DASH if value is None or isinstance(value, ChainableUndefined) else value
    ),
)
_ENVIRONMENT.filters.update(
    number=number,
    percent=percent,
    milliseconds=milliseconds,
    duration=duration,
    score=score,
    size=size,
    tiny=tiny,
    when=when,
    plain=plain,
    picture=picture,
)
