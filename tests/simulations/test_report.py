"""The report says what the summary says, to the letter, and cannot be made to say more."""

from __future__ import annotations

import io
import math
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from protocol.errors import StorageError
from simulations.report import figures
from simulations.report.charts import Bar, Series, bar_chart, finite, line_chart, ticks
from simulations.report.page import render, write_report

HOSTILE = "\"></svg></bdi><script>alert('1')</script><img src=x onerror='a()'> & {{ 7 * 7 }}"
NAMES = ["harbour", "clinic", "newsroom", "museum"]
RECALL = {"recall_at_1": 0.284, "recall_at_5": 0.571, "recall_at_10": 0.694, "median_rank": 4.0}


def thumbnail(shade: int, kind: str = "JPEG") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (16, 16), (shade, 90, 120)).save(out, kind)
    return out.getvalue()


def summary(names: list[str] | None = None, rounds: int = 4) -> dict[str, Any]:
    names = NAMES if names is None else names
    return {
        "title": "4 institutions, 3,200 captioned scenes",
        "command": "blindsight simulate --scenes 3200",
        "created": "2026-11-23T20:00:00Z",
        "versions": {"blindsight": "0.1.0", "flwr": "1.41.0"},
        "settings": {"rounds": rounds, "items": 3, "central": True, "seed": None},
        "seconds": {"data": 1.2, "training": 60.1, "total": 106.7},
        "peak_memory_mb": 1500.0,
        "institutions": [
            {"name": n, "train": 600, "val": 80, "test": 120, "indexed": 120, "skipped": 1}
            | {"skips": ["line 12: image cannot be decoded"]}
            for n in names
        ],
        "rounds": [
            {
                "round": r + 1,
                "seconds": 3.1,
                "bytes_down": 1_260_000,
                "bytes_up": 1_250_000,
                "institutions": {
                    n: {"train_loss": 2 / (r + 1), "recall_at_10": 0.3} for n in names
                },
                "dropped": {"clinic": "no reply before the deadline"} if r == 1 else {},
            }
            for r in range(rounds)
        ],
        "retrieval": {
            "gallery": 480,
            "queries": 960,
            "federated": RECALL,
            "central": {**RECALL, "recall_at_10": 0.713},
            "chance": {**RECALL, "recall_at_10": 0.0208},
            "local": [{"name": n, **RECALL, "recall_at_10": 0.46} for n in names],
        },
        "encrypted": {
            "preset": "private",
            "dim": 64,
            "ring_degree": 4096,
            "moduli_bits": [27, 27, 26],
            "circuit_privacy_bits": 34.2,
            "queries": 200,
            "overlap_at_10": 0.998,
            "max_score_error": 3.1e-6,
            "rms_score_error": 9e-7,
            "upload_bytes": 1_310_000,
            "download_bytes": 262_000,
            "query_ms": 41.0,
            "phases_ms": {"embed": 5.1, "server": 12.0},
            "institutions": [
                {"name": n, "items": 120, "upload_bytes": 1, "download_bytes": 2, "query_ms": 3.0}
                for n in names
            ],
        },
        "examples": [
            {
                "query": "a small red circle above a blue star",
                "results": [
                    {
                        "institution": n,
                        "score": 0.83,
                        "thumbnail": thumbnail(60 * i % 256),
                        "caption": None,
                    }
                    | {"relevant": i == 0}
                    for i, n in enumerate(names)
                ],
            }
        ],
    }


class Tags(HTMLParser):
    """Checks that elements nest, and keeps every start tag with its attributes."""

    VOID = frozenset({"meta", "link", "img", "br"})
    SELF_CLOSED = frozenset({"rect", "circle", "line", "polyline", "path"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in self.SELF_CLOSED
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def __getitem__(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.seen if name == tag]


def replaced(value: Any, leaf: Any) -> Any:
    """The same structure with every number replaced."""
    if isinstance(value, dict):
        return {key: replaced(one, leaf) for key, one in value.items()}
    if isinstance(value, list):
        return [replaced(one, leaf) for one in value]
    return leaf if isinstance(value, int | float) else value


def test_the_figures_come_from_the_summary() -> None:
    text = Tags(render(summary())).text.replace("\u202f", " ")
    assert "finds a right picture among its first ten 69.4 % of the time (by chance 2.1 %)" in text
    assert "under encryption 99.8 % of the first ten stay the same" in text
    assert "41.0 ms" in text
    assert "1.6 MB" in text
    assert "3,200" in text and "shown here: 4 released thumbnails" in text
    assert "23.4 points above the best institution alone (newsroom)" in text
    assert "1.9 points below a model trained on the pooled data" in text
    assert "3.1 \u00d7 10⁻⁶" in text
    assert "23 November 2026, 20:00 UTC" in text
    assert "no reply before the deadline" in text
    assert "line 12: image cannot be decoded" in text
    assert "each institution\u2019s model update" in text


def test_secure_aggregation_changes_what_the_coordinator_sees() -> None:
    given = summary()
    given["settings"]["secure_aggregation"] = True
    text = Tags(render(given)).text
    assert "only the sum of the model updates" in text
    assert "each institution\u2019s model update" not in text


def test_the_page_can_load_nothing() -> None:
    html = render(summary())
    tags = Tags(html)
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "url(" not in html
    assert not tags["script"] + tags["iframe"] + tags["object"] + tags["base"] + tags["form"]
    policy = tags["meta"][1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    assert all(str(image["src"]).startswith("data:image/jpeg;base64,") for image in tags["img"])
    assert all(str(link["href"]).startswith("#") for link in tags["a"])


def test_pictures_charts_and_tables_speak() -> None:
    tags = Tags(render(summary()))
    assert len(tags["img"]) == 4
    assert all(image["alt"] for image in tags["img"])
    charts = [svg for svg in tags["svg"] if svg.get("class") == "chart"]
    assert len(charts) == 7
    assert all(chart["role"] == "img" and chart["aria-label"] for chart in charts)
    assert all(head.get("scope") for head in tags["th"])


def test_hostile_text_is_text_everywhere() -> None:
    given = summary(names=[HOSTILE, f"{HOSTILE}2"])
    for example in given["examples"]:
        example["query"] = HOSTILE
        for result in example["results"]:
            result["caption"] = HOSTILE
    for one in given["institutions"]:
        one["skips"] = [HOSTILE]
    given["rounds"][0]["dropped"] = {HOSTILE: HOSTILE}
    given["encrypted"]["phases_ms"][HOSTILE] = 1.0
    given["encrypted"]["preset"] = HOSTILE
    given |= {"title": HOSTILE, "command": HOSTILE, "created": HOSTILE}
    given |= {"settings": {HOSTILE: HOSTILE}, "versions": {HOSTILE: HOSTILE}}
    html = render(given)
    tags = Tags(html)
    assert "<script" not in html
    assert "49" not in tags["img"][0]["alt"]  # type: ignore[operator]
    assert not any(name.startswith("on") for _, attrs in tags.seen for name in attrs)
    assert all(str(image["src"]).startswith("data:image/jpeg") for image in tags["img"])
    assert {image["alt"] for image in tags["img"]} == {HOSTILE}
    assert any(HOSTILE in str(svg.get("aria-label")) for svg in tags["svg"])
    assert HOSTILE in tags.text


def test_a_lone_surrogate_does_not_stop_the_report(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", {"title": "a \ud800 b"})
    assert "a &#55296; b" in (tmp_path / "r.html").read_text("utf-8")


@pytest.mark.parametrize("part", sorted(summary()))
@pytest.mark.parametrize("absent", [True, False])
def test_every_part_may_be_missing(part: str, absent: bool) -> None:
    given = summary()
    if absent:
        del given[part]
    else:
        given[part] = None
    Tags(render(given))


def test_what_was_not_run_is_said_so() -> None:
    given = summary()
    given["retrieval"] |= {"central": None, "local": []}
    del given["encrypted"]
    tags = Tags(render(given))
    assert tags.text.count("not run") == 3
    assert "points" not in tags.text
    assert "under encryption" not in tags.text
    assert "not run" in Tags(render({})).text


@pytest.mark.parametrize("leaf", [None, math.nan, math.inf, -math.inf, "text", True, [], {}])
def test_no_value_breaks_the_page(leaf: Any) -> None:
    tags = Tags(render(replaced(summary(), leaf)))
    assert "finds" not in tags.text
    words = {word.strip(".,;()") for word in tags.text.lower().split()}
    assert words.isdisjoint({"nan", "inf", "-inf", "none%"})
    numbers = {"x", "x1", "x2", "y", "y1", "y2", "cx", "cy", "width", "height", "points"}
    drawn = [str(attrs[key]) for _, attrs in tags.seen for key in numbers & attrs.keys()]
    assert not [one for one in drawn if "n" in one]


@pytest.mark.parametrize("count", [0, 1, 2, 40])
@pytest.mark.parametrize("names", [[], ["only"], NAMES, [f"site {i}" for i in range(20)]])
def test_any_number_of_rounds_and_institutions(names: list[str], count: int) -> None:
    text = Tags(render(summary(names=names, rounds=count))).text
    assert ("Federated training: not run" in text) == (count == 0)


def test_the_same_summary_gives_the_same_page() -> None:
    assert render(summary()) == render(summary())


def test_writing_is_all_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(path, summary())
    before = path.read_text("utf-8")
    assert before == render(summary())

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError, match="disk full"):
        write_report(path, {})
    assert path.read_text("utf-8") == before
    assert list(path.parent.iterdir()) == [path]


def test_a_missing_value_breaks_its_line_only() -> None:
    points: list[tuple[float, object]] = [(1, 0.1), (2, math.nan), (3, 0.3), (4, None), (5, 0.5)]
    chart = line_chart(
        "t", [Series("a", points), Series("b", [(1, 0.2), (5, 0.4)])], figures.percent
    )
    assert chart.count("<polyline") == 4
    assert chart.count('<circle class="dot') == 5
    assert "a ends at 50.0\u202f%" in chart


def test_long_lines_lose_their_dots_but_lone_points_do_not() -> None:
    points: list[tuple[float, object]] = [(i, None if i == 1 else 0.5) for i in range(60)]
    assert line_chart("t", [Series("a", points)], figures.percent).count('<circle class="dot') == 1


def test_charts_without_values_say_so() -> None:
    assert "no values" in line_chart("t", [Series("a", [(1, None)])], figures.number)
    assert "no values" in bar_chart("t", [Bar("a", math.nan)], figures.number)


@pytest.mark.parametrize(
    "values", [(0, 0), (5, 5), (-1, 1), (1, 1 + 1e-15), (1e-30, 2e-30), (-1e99, 1e99), (0.61, 0.68)]
)
def test_ticks_enclose_the_values(values: tuple[float, float]) -> None:
    found = ticks(*values)
    assert found[0] <= values[0] + 1e-12
    assert found[-1] >= values[1] - 1e-12
    assert 2 <= len(found) <= 8
    assert found == sorted(set(found))
    line_chart("t", [Series("a", list(enumerate(values)))], figures.number)


@pytest.mark.parametrize(
    ("show", "value", "expected"),
    [
        (figures.size, 999, "999 B"),
        (figures.size, 1_200_000, "1.2 MB"),
        (figures.size, 999_999, "1.0 MB"),
        (figures.size, 65_500, "65.5 kB"),
        (figures.size, 3e15, "3,000.0 TB"),
        (figures.percent, 0.998, "99.8 %"),
        (figures.percent, 0.9996, "99.96 %"),
        (figures.percent, 0.99999, ">99.9 %"),
        (figures.percent, 1, "100 %"),
        (figures.percent, 0.0001, "<0.1 %"),
        (figures.percent, 0, "0 %"),
        (figures.milliseconds, 41, "41.0 ms"),
        (figures.milliseconds, 12_000, "12.0 s"),
        (figures.duration, 106.7, "1 min 47 s"),
        (figures.duration, 59.97, "1 min 0 s"),
        (figures.number, 3200, "3,200"),
        (figures.number, 240.5, "240.5"),
        (figures.number, 1500.2, "1,500"),
        (figures.tiny, 9e-7, "9.0 \u00d7 10⁻⁷"),
        (figures.tiny, 0, "0"),
        (figures.plain, [27, 27, 26], "27, 27, 26"),
        (figures.plain, True, "yes"),
        (figures.when, "yesterday", "yesterday"),
    ],
)
def test_figures_read_well(show: Any, value: object, expected: str) -> None:
    assert show(value).replace("\u202f", " ") == expected


@pytest.mark.parametrize(
    "show",
    [
        figures.number,
        figures.percent,
        figures.milliseconds,
        figures.duration,
        figures.size,
        figures.score,
        figures.tiny,
    ],
)
@pytest.mark.parametrize("value", [None, math.nan, math.inf, "12", True, object()])
def test_what_is_no_number_is_a_dash(show: Any, value: object) -> None:
    assert show(value) == "\u2013"
    assert finite(value) is None


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_pictures_are_told_by_their_bytes(kind: str) -> None:
    assert str(figures.picture(thumbnail(1, kind))).startswith(f"data:image/{kind.lower()};base64,")


@pytest.mark.parametrize("data", [None, b"", b"<svg onload='a()'>", "text", b"GIF89a"])
def test_anything_else_is_no_picture(data: object) -> None:
    assert figures.picture(data) is None
