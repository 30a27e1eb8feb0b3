"""The page of an experiment says whether joining pays, and says no more than was measured."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import StorageError
from protocol.model.settings import TrainingSettings
from server.round import RoundReport
from simulations.experiment.comparison import Comparison
from simulations.experiment.findings import Findings
from simulations.experiment.page import render, write_page
from simulations.experiment.settings import ExperimentSettings
from simulations.report import figures
from simulations.report.charts import Bar, bar_chart
from tests.simulations.test_report import HOSTILE, Tags, replaced

NAMES = ["institution-10", "institution-2"]


def scores(recall: float, half: float = 0.03) -> dict[str, Any]:
    one = {"recall_at_1": recall / 3, "recall_at_5": recall / 2, "recall_at_10": recall}
    one |= {"median_rank": 9.0, "mean_average_precision": 0.31}
    back = {**one, "recall_at_10": recall - 0.1}
    return {**one, "image_to_text": back, "interval": [recall - half, recall + half]}


def partition(
    alone: dict[str, list[float]],
    federated: tuple[float, ...] = (0.56, 0.574),
    central: tuple[float, ...] = (0.58, 0.59),
) -> dict[str, Any]:
    rounds = [
        {"round": at, "seconds": 2.5, "bytes_up": 1_250_000, "bytes_down": 1_500_000}
        | {"recall_at_10": at / 10, "train_loss": 2 / at, "dropped": {}}
        for at in (1, 2, 3)
    ]
    return {
        "runs": [
            {
                "seed": seed,
                "federated": scores(mine),
                "alone": {one: scores(own[seed]) for one, own in alone.items()},
                "pairs": dict.fromkeys(alone or NAMES, 600 + seed),
                "rounds": rounds,
            }
            for seed, mine in enumerate(federated)
        ],
        "central_runs": [scores(one) for one in central],
    }


def experiment(**alone: list[float]) -> dict[str, Any]:
    named = {one.replace("_", "-"): own for one, own in alone.items()}
    return {
        "partitions": {
            "site": partition(named or {"institution-10": [0.39, 0.4], "institution-2": [0.38] * 2})
        },
        "gallery": 480,
        "queries": 1183,
        "pairs": 3200,
        "seeds": 2,
        "settings": {"rounds": 3, "local": True, "towers": "{}"},
        "command": "blindsight experiment --data flickr --seeds 2",
        "seconds": 61.0,
    }


def said(data: dict[str, Any]) -> str:
    return Tags(render(data)).text.replace("\u202f", " ")


def charts(data: dict[str, Any]) -> list[str]:
    tags = Tags(render(data))
    found = [svg["aria-label"] for svg in tags["svg"] if svg.get("class") == "chart"]
    return [str(one).replace("\u202f", " ") for one in found]


def test_the_figures_are_means_over_seeds() -> None:
    text = said(experiment())
    assert (
        "Joining pays: 2 institutions federated reach 56.7 % recall@10, 0.97 of pooled data; "
        "alone they reach 38.8 % on average." in text
    )
    assert "1,183 sentences over the same 480 test pictures" in text
    assert "53.7 % to 59.7 %" in text  # the ends of the interval, over both seeds
    assert "46.7 %" in text  # recall from image to text
    assert "+17.2" in text and "600.5" in text
    assert "1.2 MB" in text and "1.5 MB" in text and "2.5 s" in text
    assert "blindsight experiment --data flickr --seeds 2" in text


def test_pictures_carry_intervals_and_count_like_people() -> None:
    picture, recall, loss = charts(experiment())
    assert picture == (
        "Recall@10, site. Pooled 58.5 %, from 55.5 % to 61.5 %; Federated 56.7 %, from 53.7 % to "
        "59.7 %; institution-2 38.0 %, from 35.0 % to 41.0 %; institution-10 39.5 %, from 36.5 % "
        "to 42.5 %."
    )
    assert recall == "Validation recall@10. site ends at 30.0 %."
    assert loss.startswith("Training loss. site ends at 0.66")
    assert render(experiment()).count('<line class="whisker"') == 3 * 4


@pytest.mark.parametrize(
    ("alone", "words"),
    [
        ({"a": [0.7, 0.7], "b": [0.8, 0.8]}, ["Joining does not pay: "]),
        ({"a": [0.56, 0.55], "b": [0.57, 0.6]}, ["Too close to tell whether joining pays: "]),
        (
            {"a": [0.2, 0.2], "b": [0.7, 0.7], "c": [0.56, 0.55]},
            [
                "Joining pays for 1 of 3: ",
                "It does not pay for b, whose own model is better.",
                "It is too close to tell for c.",
            ],
        ),
        (
            {"a": [0.57, 0.55], "b": [0.7] * 2, "c": [0.7] * 2, "d": [0.7] * 2, "e": [0.7] * 2},
            [
                "Joining pays for none of 5: ",
                "It does not pay for b, c, d and 1 more, whose own models are better.",
            ],
        ),
    ],
)
def test_it_is_said_for_whom_joining_does_not_pay(
    alone: dict[str, list[float]], words: list[str]
) -> None:
    text = said(experiment(**alone))
    assert all(one in text for one in words)


def test_seeds_that_disagree_leave_it_open() -> None:
    # Far outside the interval on average, but better in one of the seeds.
    found = Comparison.read("site", partition({"a": [0.57, 0.1]}))
    assert found.verdict(found.alone[0]) == "too close to tell"
    assert found.gain(found.alone[0]) == pytest.approx(0.232)


def test_gains_are_taken_between_models_of_one_seed() -> None:
    given = partition({"a": [0.3, 0.4]})
    given["runs"][0]["federated"] = None
    found = Comparison.read("site", given)
    assert found.gain(found.alone[0]) == pytest.approx(0.174)


def test_every_way_to_split_has_its_own_verdict() -> None:
    data = experiment()
    data["partitions"]["dirichlet:0.3"] = partition({"x": [0.7, 0.7]})
    text = said(data)
    assert "Joining pays: 2 institutions" in text
    assert "Joining does not pay: 1 institution" in text
    assert "Topics shared out unevenly (dirichlet:0.3)" in text
    pictures = charts(data)
    assert len(pictures) == 4
    assert "site ends at 30.0 %; dirichlet:0.3 ends at 30.0 %" in pictures[2]


def test_what_was_not_run_is_said_so() -> None:
    data = experiment()
    data["partitions"]["site"] = partition({})
    text = said(data)
    assert "what each reaches alone was not measured" in text
    assert "Each institution alone: not run." in text
    assert "Joining pays:" not in text
    assert "Nothing was measured." in said({})


def test_means_stand_in_for_runs_that_are_missing() -> None:
    data = {
        "partitions": {
            "iid": {
                "recall_at_10": {"federated": 0.5, "central": 0.625, "local": 0.3},
                "intervals": {"federated": [0.45, 0.55]},
                "institutions": {"a": 0.2, "b": 0.4},
            }
        }
    }
    assert (
        "Joining pays: 2 institutions federated reach 50.0 % recall@10, 0.80 of pooled data; "
        "alone they reach 30.0 % on average." in said(data)
    )


def test_one_seed_claims_no_deviation() -> None:
    data = experiment()
    data["partitions"]["site"] = partition({"a": [0.3]}, (0.5,), (0.6,))
    data["seeds"] = 1
    text = said(data)
    assert "with one seed, nothing is known of how they vary" in text
    assert "1 seed" in text
    assert Comparison.read("x", data["partitions"]["site"]).federated.deviation("recall_at_10") is (
        None
    )


def test_the_page_can_load_nothing() -> None:
    html = render(experiment())
    tags = Tags(html)
    assert not [one for one in ("http://", "https://", "@import", "url(") if one in html]
    assert not [tag for tag in ("script", "iframe", "object", "base", "form", "img") if tags[tag]]
    policy = tags["meta"][1]
    assert policy["http-equiv"] == "Content-Security-Policy"
    assert policy["content"] == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    places = {attrs["id"] for _, attrs in tags.seen if "id" in attrs}
    assert {str(link["href"])[1:] for link in tags["a"]} <= places
    assert all(head.get("scope") for head in tags["th"])


def test_hostile_text_is_text_everywhere() -> None:
    data = experiment()
    worse = partition({HOSTILE: [0.7, 0.7]})
    worse["runs"][0]["rounds"][0]["dropped"] = {HOSTILE: HOSTILE}
    data["partitions"] = {HOSTILE: worse}
    data |= {"settings": {HOSTILE: HOSTILE}, "command": HOSTILE}
    data |= {"pairs": HOSTILE, "seeds": HOSTILE, "gallery": HOSTILE, "seconds": HOSTILE}
    html = render(data)
    tags = Tags(html)
    assert "<script" not in html
    assert not any(name.startswith("on") for _, attrs in tags.seen for name in attrs)
    assert any(HOSTILE in str(svg.get("aria-label")) for svg in tags["svg"])
    assert tags.text.count(HOSTILE) >= 6


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner: Any = value.items() if isinstance(value, dict) else enumerate(value)
    found = [path] if path else []
    for key, one in inner if isinstance(value, dict | list) else ():
        found += _paths(one, (*path, key)) if isinstance(one, dict | list) else [(*path, key)]
    return found


@pytest.mark.parametrize("leaf", ["absent", None, "text", 7, [], {}, [None], [[1, 2]]])
def test_every_part_may_be_missing_or_wrong(leaf: Any) -> None:
    for path in _paths(experiment()):
        data = copy.deepcopy(experiment())
        inner: Any = data
        for key in path[:-1]:
            inner = inner[key]
        if leaf == "absent":
            del inner[path[-1]]
        else:
            inner[path[-1]] = leaf
        Tags(render(data))


@pytest.mark.parametrize("leaf", [None, math.nan, math.inf, "text", True, [], {}])
def test_no_value_breaks_the_page(leaf: Any) -> None:
    text = Tags(render(replaced(experiment(), leaf))).text
    words = {word.strip(".,;()") for word in text.lower().split()}
    assert words.isdisjoint({"nan", "inf", "none%"})
    assert "Joining pays:" not in text
    assert "The federated model was not measured." in text


def test_writing_is_all_or_nothing(tmp_path: Path) -> None:
    path = tmp_path / "experiment.html"
    write_page(path, {"command": "a \ud800 b"})
    assert "a &#55296; b" in path.read_text("utf-8")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError):
        write_page(tmp_path / "folder", experiment())
    assert sorted(one.name for one in tmp_path.iterdir()) == ["experiment.html", "folder"]


def test_a_whisker_needs_both_ends_and_stays_inside() -> None:
    drawn = bar_chart(
        "t",
        [Bar("a", 0.5, low=0.4, high=0.6), Bar("b", 0.5, low=0.4), Bar("c", 0.9, low=-1, high=9)],
        figures.percent,
        top=1.0,
    )
    assert drawn.count('<line class="whisker"') == 6
    assert 'x1="40.00%" x2="60.00%"' in drawn
    assert 'x1="0.00%" x2="100.00%"' in drawn


def test_the_command_has_what_was_set_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BLINDSIGHT_EXPERIMENT_SEEDS", "1")
    settings = ExperimentSettings.from_flags(
        data=Path("my pictures"), local=False, out=Path("out"), learning_rate=None
    )
    findings = Findings(settings, TrainingSettings(), 10, (4, 9))
    findings.add_central(0, scores(0.5))
    report = RoundReport(1, 1, True, (), seconds=1.0, bytes_down=3, bytes_up=2)
    findings.add("iid", 0, {}, scores(0.4), {}, [report])
    Path("out").mkdir()
    found = findings.finish(Path("out")).data
    assert found["command"].startswith("blindsight experiment ")
    words = set(found["command"].split(" --")[1:])
    assert words == {"data 'my pictures'", "no-local", "out out", "seeds 1"}
    assert json.loads((tmp_path / "out/experiment.json").read_text()) == found
    page = (tmp_path / "out/experiment.html").read_text("utf-8")
    assert page == render(found)
    assert "what each reaches alone was not measured" in page
