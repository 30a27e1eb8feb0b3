"""What the report says: sentences, large figures, and the rows of its tables and charts.

Every part of the summary may be missing, and nothing in it need have the right type.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from simulations.report.charts import DASH, Bar, Series, bar_chart, finite, ticks
from simulations.report.figures import duration, milliseconds, number, percent, picture, size


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


def large_figures(summary: Mapping[str, Any]) -> list[tuple[str, str, str]]:
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
        (
            "Right picture in the first ten",
            percent(federated),
            f"of {number(_at(summary, 'retrieval', 'gallery'))} test pictures; "
            f"by chance {percent(chance)}",
        ),
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
            "Pictures searched",
            number(held or None),
            f"at {number(len(institution_names(summary)))} institutions; shown here: "
            f"{number(len(shown))} released thumbnails",
        ),
    ]


def _total(encrypted: Mapping[str, Any], key: str) -> float | None:
    whole = finite(encrypted.get(key))
    if whole is not None:
        return whole
    parts = [finite(one.get(key)) for one in _list(encrypted.get("institutions"))]
    return sum(part for part in parts if part is not None) if any(parts) else None


def standings(summary: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
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


def recall_bars(rows: list[tuple[str, str, Mapping[str, Any]]], cut: int) -> tuple[str, str]:
    """Return a title and its chart of the recall among the first ``cut`` of every model."""
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


def verdict(summary: Mapping[str, Any]) -> str | None:
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


def curves(summary: Mapping[str, Any], tones: Mapping[str, str], key: str) -> list[Series]:
    """Return one line for every institution: its figure ``key`` after each round."""
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


def effort(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
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


def parts(summary: Mapping[str, Any], *path: str) -> list[Bar]:
    """Return the parts of a total as bars, the largest of them strong."""
    values = _mapping(_at(summary, *path))
    known = {name: value for name, value in values.items() if name != "total"}
    largest = max((finite(value) or 0.0 for value in known.values()), default=0.0)
    return [Bar(name, value, finite(value) == largest) for name, value in known.items()]


def institution_names(summary: Mapping[str, Any]) -> list[str]:
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
