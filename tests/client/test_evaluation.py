"""Ranks, recalls and precisions against plain counting and torchmetrics, chance against
shuffling, intervals against theory.
"""

import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterable
from dataclasses import asdict, astuple
from pathlib import Path
from statistics import mean, median

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchmetrics.functional.retrieval import (
    retrieval_average_precision,
    retrieval_hit_rate,
    retrieval_recall,
    retrieval_reciprocal_rank,
)

from client.institution.evaluation import (
    Evaluation,
    Retrieval,
    by_folds,
    by_institution,
    chance,
    evaluate,
    evaluate_vectors,
    measure,
    relevance,
    retrieve,
)
from client.institution.evaluation.folder import evaluate_folder
from protocol.errors import DataError

Gallery = tuple[np.ndarray, np.ndarray, list[set[int]]]


class Letters:
    """Embeds by the first letter, or the first pixel."""

    fit = (1, None, "bicubic")

    def texts(self, texts: list[str]) -> np.ndarray:
        return np.eye(26, dtype=np.float32)[[ord(text[0]) - 97 for text in texts]]

    def pixels(self, pixels: np.ndarray) -> np.ndarray:
        return np.eye(26, dtype=np.float32)[pixels[:, 0, 0, 0]]


def _brute(scores: Iterable[Iterable[float]], relevant: list[set[int]]) -> dict[str, float]:
    """Counted item by item: every other item that is not worse comes before a relevant one."""
    best, precision = [], []
    for row, wanted in zip(np.asarray(scores).tolist(), relevant, strict=True):
        own = sorted((row[index] for index in wanted), reverse=True)
        ahead = [sum(s >= one for i, s in enumerate(row) if i not in wanted) for one in own]
        best.append(1 + ahead[0])
        precision.append(mean(k / (k + a) for k, a in enumerate(ahead, 1)))
    at = {f"recall_at_{k}": mean(rank <= k for rank in best) for k in (1, 5, 10)}
    return {
        **at,
        "median_rank": median(best),
        "mean_rank": mean(best),
        "mean_average_precision": mean(precision),
    }


def _figures(found: Retrieval) -> dict[str, float]:
    return {k: v for k, v in asdict(found).items() if k not in ("queries", "gallery")}


def _transposed(relevant: list[set[int]]) -> dict[int, set[int]]:
    """The texts of each image that has any."""
    images = sorted(set().union(*relevant))
    return {image: {t for t, wanted in enumerate(relevant) if image in wanted} for image in images}


@st.composite
def galleries(draw: st.DrawFn, ties: bool = True, most: int = 15) -> Gallery:
    """Images [n, 4], texts [q, 4], and the images of each text, at least one."""
    count, queries = draw(st.integers(1, most)), draw(st.integers(1, most))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    images, texts = rng.normal(size=(count, 4)), rng.normal(size=(queries, 4))
    if ties and draw(st.booleans()):
        images, texts = np.sign(images), np.sign(texts)
    sizes = rng.integers(1, count + 1, queries)
    relevant = [set(rng.choice(count, size, replace=False).tolist()) for size in sizes]
    return images.astype(np.float32), texts.astype(np.float32), relevant


def _hits(hits: np.ndarray) -> Gallery:
    """A gallery whose text j of image i finds it at once, or last, as ``hits`` [n, texts] says."""
    count, texts = hits.shape
    own = np.arange(count).repeat(texts)
    shown = np.where(hits.ravel(), own, (own + 1) % count)
    eye = np.eye(count, dtype=np.float32)
    return eye, eye[shown], [{image} for image in own.tolist()]


@given(galleries())
def test_both_directions_are_what_counting_gives(gallery: Gallery) -> None:
    images, texts, relevant = gallery
    found = evaluate_vectors(images, texts, relevant)
    assert _figures(found.text_to_image) == pytest.approx(_brute(texts @ images.T, relevant))
    assert found.text_to_image == retrieve(texts, images, relevant)
    assert (found.text_to_image.queries, found.text_to_image.gallery) == (len(texts), len(images))
    back = _transposed(relevant)
    expected = _brute(images[list(back)] @ texts.T, list(back.values()))
    assert _figures(found.image_to_text) == pytest.approx(expected)
    assert (found.image_to_text.queries, found.image_to_text.gallery) == (len(back), len(texts))


@given(galleries(ties=False, most=40))
def test_torchmetrics_agrees(gallery: Gallery) -> None:
    images, texts, relevant = gallery
    # Ranks stand for the scores: torchmetrics takes what scores zero or less as not found.
    scores = torch.from_numpy((texts @ images.T).argsort(axis=1).argsort(axis=1) + 1.0)
    target = torch.tensor([[i in wanted for i in range(len(images))] for wanted in relevant])
    rows = list(zip(scores, target, strict=True))
    found = retrieve(texts, images, relevant)
    for k, recall in ((1, found.recall_at_1), (5, found.recall_at_5), (10, found.recall_at_10)):
        assert recall == pytest.approx(mean(retrieval_hit_rate(*row, k).item() for row in rows))
        if all(len(wanted) == 1 for wanted in relevant):  # then both recalls are one
            assert recall == pytest.approx(mean(retrieval_recall(*row, k).item() for row in rows))
    precision = mean(retrieval_average_precision(*row).item() for row in rows)
    assert found.mean_average_precision == pytest.approx(precision, abs=1e-5)
    ranks = [1 / retrieval_reciprocal_rank(*row).item() for row in rows]
    assert found.mean_rank == pytest.approx(mean(ranks), rel=1e-5)
    assert found.median_rank == pytest.approx(median(ranks), rel=1e-5)


def test_torchmetrics_agrees_on_one_relevant_item() -> None:
    rng = np.random.default_rng(0)
    images, texts = (rng.normal(size=(60, 8)).astype(np.float32) for _ in range(2))
    found = retrieve(texts, images, [{index} for index in range(60)])
    scores, target = torch.from_numpy(texts @ images.T), torch.eye(60, dtype=torch.bool)
    for k, recall in ((1, found.recall_at_1), (5, found.recall_at_5), (10, found.recall_at_10)):
        expected = mean(
            retrieval_recall(*row, k).item() for row in zip(scores, target, strict=True)
        )
        assert recall == pytest.approx(expected)


def test_ties_go_against_us() -> None:
    flat = np.ones((1, 2), np.float32)
    found = evaluate_vectors(np.ones((7, 2), np.float32), flat, [{3}])
    assert found.text_to_image.median_rank == 7
    assert found.text_to_image.mean_average_precision == pytest.approx(1 / 7)
    found = evaluate_vectors(flat, np.ones((3, 2), np.float32), [{0}, {0}, {0}])
    assert astuple(found.image_to_text) == (1, 3, 1, 1, 1, 1, 1, 1)


def test_a_relevant_item_that_is_named_twice_counts_once() -> None:
    eye = np.eye(4, dtype=np.float32)
    assert evaluate_vectors(eye, eye[:1], [[0, 2, 0]]) == evaluate_vectors(eye, eye[:1], [{0, 2}])


def test_a_gallery_in_blocks_gives_what_it_gives_at_once() -> None:
    rng = np.random.default_rng(0)
    images, texts = (rng.integers(-9, 10, (2500, 6)).astype(np.float32) for _ in range(2))
    relevant = [{index, (7 * index) % 2500} for index in range(2500)]
    scores = texts @ images.T
    rows = np.arange(2500)
    best = np.maximum(scores[rows, rows], scores[rows, 7 * rows % 2500])
    scores[rows, rows] = scores[rows, 7 * rows % 2500] = -np.inf
    ranks = 1 + (scores >= best[:, None]).sum(axis=1)
    found = retrieve(texts, images, relevant)
    assert (found.mean_rank, found.median_rank) == (ranks.mean(), np.median(ranks))


def test_memory_does_not_grow_with_the_number_of_scores() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(1500, 8)).astype(np.float32)
    texts = rng.normal(size=(20_000, 8)).astype(np.float32)
    relevant = [{index % 1500} for index in range(20_000)]
    tracemalloc.start()
    try:
        evaluate_vectors(images, texts, relevant)
        assert tracemalloc.get_traced_memory()[1] < 60e6  # all scores are 120 MB
    finally:
        tracemalloc.stop()


def test_chance_is_what_shuffling_gives() -> None:
    rng = np.random.default_rng(0)
    counts = [1, 1, 3, 10]
    exact = chance(40, counts)
    drawn = [[np.sort(rng.permutation(40)[:m]) + 1 for m in counts] for _ in range(20_000)]
    best = np.array([[ranks[0] for ranks in row] for row in drawn])
    precision = [np.mean(np.arange(1, len(r) + 1) / r) for row in drawn for r in row]
    assert exact.recall_at_1 == pytest.approx((best <= 1).mean(), abs=0.01)
    assert exact.recall_at_5 == pytest.approx((best <= 5).mean(), abs=0.01)
    assert exact.recall_at_10 == pytest.approx((best <= 10).mean(), abs=0.01)
    assert exact.mean_rank == pytest.approx(best.mean(), abs=0.15)
    assert exact.median_rank == np.median(best)
    assert exact.mean_average_precision == pytest.approx(np.mean(precision), abs=0.003)
    assert chance(480, [1] * 5).recall_at_10 == pytest.approx(10 / 480)
    assert chance(3, [1]).recall_at_10 == 1 and chance(3, [3]).median_rank == 1
    assert chance(1, [1]).mean_average_precision == chance(3, [3]).mean_average_precision == 1


def test_relevance_joins_images_that_share_a_caption() -> None:
    queries, relevant = relevance([("a cat", "Pet"), ("pet ", "a dog"), ("a cat",)])
    assert queries == ["a cat", "Pet", "a dog"]
    assert relevant == [{0, 2}, {0, 1}, {1}]


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from("aAbc"), max_size=3), st.sampled_from(["x", "y", None])),
        max_size=9,
    )
)
def test_relevance_joins_images_of_a_group(gallery: list[tuple[list[str], str | None]]) -> None:
    queries, relevant = relevance([texts for texts, _ in gallery], [group for _, group in gallery])
    assert len({query.lower() for query in queries}) == len(queries)
    assert {query.lower() for query in queries} == {t.lower() for ts, _ in gallery for t in ts}
    for query, wanted in zip(queries, relevant, strict=True):
        said = {i for i, (ts, _) in enumerate(gallery) if query.lower() in {t.lower() for t in ts}}
        groups = {gallery[i][1] for i in said} - {None}
        assert wanted == said | {i for i, (_, group) in enumerate(gallery) if group in groups}


def test_folds_are_galleries_of_their_own() -> None:
    rng = np.random.default_rng(0)
    images = rng.normal(size=(47, 4)).astype(np.float32)
    texts = (images.repeat(3, axis=0) + rng.normal(size=(141, 4))).astype(np.float32)
    relevant = [{index // 3} for index in range(141)]
    relevant[4] |= {30}  # asked in the first fold and in the third
    parts = []
    for start in (0, 15, 30):
        asked = [t for t, wanted in enumerate(relevant) if wanted & set(range(start, start + 15))]
        wanted = [{i - start for i in relevant[t] if start <= i < start + 15} for t in asked]
        parts.append(evaluate_vectors(images[start : start + 15], texts[asked], wanted))
    found = by_folds(images, texts, relevant, fold=15)
    for direction in ("text_to_image", "image_to_text"):
        folds = [getattr(part, direction) for part in parts]
        whole, queries = getattr(found, direction), [fold.queries for fold in folds]
        assert whole.queries == sum(queries) == (45 if direction == "image_to_text" else 136)
        assert whole.gallery == folds[0].gallery
        for name, value in _figures(whole).items():
            expected = np.average([getattr(fold, name) for fold in folds], weights=queries)
            assert value == pytest.approx(expected)
        for name, (low, high) in asdict(getattr(found.intervals, direction)).items():
            assert low <= getattr(whole, name) <= high and (low < high or low in (0, 1))
    assert by_folds(images, texts, relevant, fold=47) == evaluate_vectors(images, texts, relevant)
    with pytest.raises(ValueError, match="48 images or more, got 141 and 47"):
        by_folds(images, texts, relevant, fold=48)
    with pytest.raises(ValueError, match="no text for any of the images 20 to 39"):
        by_folds(images, texts[:3], relevant[:3], fold=20)


@pytest.mark.parametrize("together", [True, False])
def test_intervals_take_the_captions_of_an_image_together(together: bool) -> None:
    rng = np.random.default_rng(1)
    hits = rng.random((400, 1 if together else 5)) < 0.6
    found = evaluate_vectors(*_hits(np.broadcast_to(hits, (400, 5))))
    assert found.text_to_image.recall_at_1 == pytest.approx(hits.mean())
    low, high = found.intervals.text_to_image.recall_at_1
    independent = 400 if together else 2000
    width = 2 * 1.96 * (0.6 * 0.4 / independent) ** 0.5
    assert high - low == pytest.approx(width, rel=0.12)
    assert (low + high) / 2 == pytest.approx(hits.mean(), abs=0.1 * width)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(2)
    held = 0
    for _ in range(100):
        easy = rng.beta(1, 1, (120, 1))  # of each image; the mean is a half
        found = evaluate_vectors(*_hits(rng.random((120, 5)) < easy))
        low, high = found.intervals.text_to_image.recall_at_5
        held += low <= 0.5 <= high
    assert 89 <= held <= 100


def test_intervals_of_both_directions_are_those_of_resampling_one_by_one() -> None:
    rng = np.random.default_rng(3)
    images = rng.normal(size=(40, 3)).astype(np.float32)
    texts = (images.repeat(2, axis=0) + rng.normal(size=(80, 3))).astype(np.float32)
    relevant = [{index // 2} for index in range(80)]
    relevant[0] |= {39}  # shared: half of it is resampled with either image
    found = evaluate_vectors(images, texts, relevant, seed=4).intervals
    back = _transposed(relevant)
    directions = (
        (texts @ images.T, relevant, relevant, found.text_to_image),
        (images @ texts.T, list(back.values()), [{image} for image in back], found.image_to_text),
    )
    for scores, wanted, owners, intervals in directions:
        hit = [_brute([row], [own])["recall_at_5"] for row, own in zip(scores, wanted, strict=True)]
        recalls = []
        for sample in np.random.default_rng(4).integers(40, size=(1000, 40)):
            count = np.bincount(sample, minlength=40)
            recalls.append(np.average(hit, weights=[count[list(own)].mean() for own in owners]))
        assert intervals.recall_at_5 == pytest.approx(np.quantile(recalls, (0.025, 0.975)))
    assert (found.units, found.resamples) == (40, 1000)


def test_intervals_repeat_with_their_seed() -> None:
    gallery = _hits(np.random.default_rng(0).random((50, 2)) < 0.5)
    first, again = evaluate_vectors(*gallery, seed=7), evaluate_vectors(*gallery, seed=7)
    other = evaluate_vectors(*gallery, seed=8)
    assert first == again and first.intervals.seed == 7
    assert first.intervals.text_to_image != other.intervals.text_to_image
    assert first.text_to_image == other.text_to_image


def test_a_group_is_resampled_as_one() -> None:
    images, texts, relevant = _hits(np.arange(20)[:, None] < 10)
    alone = evaluate_vectors(images, texts, relevant, [None] * 20).intervals
    assert alone == evaluate_vectors(images, texts, relevant).intervals and alone.units == 20
    pairs = evaluate_vectors(images, texts, relevant, [str(i // 2) for i in range(20)]).intervals
    assert pairs.units == 10
    widths = [high - low for low, high in (one.text_to_image.recall_at_1 for one in (alone, pairs))]
    assert widths[1] > 1.2 * widths[0]
    one = evaluate_vectors(images, texts, relevant, ["x"] * 20).intervals
    assert one.units == 1 and one.text_to_image.recall_at_1 == (0.5, 0.5)


def test_images_without_a_text_only_stand_in_the_way() -> None:
    images = np.ones((3, 2), np.float32)
    found = evaluate_vectors(images, images[:1], [{1}])
    assert found.text_to_image.mean_rank == 3 and found.image_to_text.queries == 1
    assert found.intervals.units == 1


@given(galleries(), st.integers(0, 2**32))
def test_by_institution_is_each_gallery_apart(gallery: Gallery, seed: int) -> None:
    images, texts, relevant = gallery
    owner = np.random.default_rng(seed).choice(["c", "a", "b"], len(images)).tolist()
    found = by_institution(images, texts, relevant, owner)
    assert list(found.own) == list(found.union) == sorted(found.own)
    for name in "abc":
        chosen = [i for i, one in enumerate(owner) if one == name]
        asked = [t for t, wanted in enumerate(relevant) if wanted & set(chosen)]
        if not asked:
            assert name not in found.own
            continue
        wanted = [{chosen.index(i) for i in relevant[t] & set(chosen)} for t in asked]
        assert astuple(found.own[name]) == pytest.approx(
            astuple(retrieve(texts[asked], images[chosen], wanted))
        )
        assert astuple(found.union[name]) == pytest.approx(
            astuple(retrieve(texts[asked], images, [relevant[t] for t in asked]))
        )
    with pytest.raises(ValueError, match="an owner for each"):
        by_institution(images, texts, relevant, [*owner, "a"])


def test_measure_asks_every_caption_of_the_gallery() -> None:
    pixels = np.arange(12, dtype=np.uint8).repeat(3).reshape(12, 3, 1, 1)
    captions = [(chr(97 + index),) for index in range(12)]
    found = measure(Letters(), pixels, captions)
    assert found.recall_at_1 == 1 and found.queries == found.gallery == 12
    assert evaluate(Letters(), pixels, captions).text_to_image == found


def test_evaluate_knows_groups_and_is_plain_json() -> None:
    pixels = np.arange(4, dtype=np.uint8).repeat(3).reshape(4, 3, 1, 1)
    captions = [("b", "a"), ("a dog",), ("c",), ("d",)]
    alone = evaluate(Letters(), pixels, captions)
    assert alone.text_to_image.recall_at_1 == pytest.approx(3 / 5)
    found = evaluate(Letters(), pixels, captions, ["twins", "twins", None, None], seed=3)
    assert found.text_to_image.recall_at_1 == found.image_to_text.recall_at_1 == 1
    assert found.text_to_image.queries == 5 and found.intervals.units == 3
    assert isinstance(found, Evaluation)
    told = json.loads(json.dumps(asdict(found)))
    assert told["intervals"]["text_to_image"]["recall_at_1"] == [1.0, 1.0]
    assert told["intervals"]["seed"] == 3 and told["image_to_text"]["queries"] == 4


def test_a_folder_is_evaluated_split_by_split(tmp_path: Path) -> None:
    lines = []
    for number, letter in enumerate("abcxy"):
        Image.new("RGB", (4, 4), (number,) * 3).save(tmp_path / f"{letter}.png")
        split = "test" if letter in "abc" else "train"
        lines.append({"file_name": f"{letter}.png", "captions": [letter], "split": split})
    (tmp_path / "bad.png").write_bytes(b"no picture")
    lines.append({"file_name": "bad.png", "captions": ["z"], "split": "test"})
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = evaluate_folder(tmp_path, Letters())
    assert (found["split"], found["images"], found["skipped"]) == ("test", 3, 1)
    assert found["text_to_image"]["recall_at_1"] == found["image_to_text"]["recall_at_1"] == 1
    assert found["chance"]["text_to_image"]["recall_at_1"] == pytest.approx(1 / 3)
    assert found["chance"]["image_to_text"]["mean_rank"] == 2
    assert json.loads(json.dumps(found)).keys() == found.keys()
    assert evaluate_folder(tmp_path, Letters(), "train")["text_to_image"]["recall_at_1"] == 0
    with pytest.raises(DataError, match="no readable image in the split 'val'"):
        evaluate_folder(tmp_path, Letters(), "val")


def test_nonsense_is_refused() -> None:
    one = np.ones((1, 2), np.float32)
    for texts, images, relevant in (
        (one, one, []),
        (one[:0], one, []),
        (one[:0], one, [{0}]),
        (one, one[:0], [{0}]),
        (one, one, [set()]),
        (one, one, [{1}]),
        (one, one, [{-1}]),
        (one, one[:, :1], [{0}]),
        (one[0], one, [{0}]),
        (one * np.nan, one, [{0}]),
        (one, one * np.inf, [{0}]),
    ):
        with pytest.raises(ValueError, match=r"expected|finite"):
            retrieve(texts, images, relevant)
        with pytest.raises(ValueError, match=r"expected|finite"):
            evaluate_vectors(images, texts, relevant)
    with np.errstate(over="ignore"), pytest.raises(ValueError, match="scores are not finite"):
        retrieve(one * 1e30, one * 1e30, [{0}])
    for counts in ([], [0], [4]):
        with pytest.raises(ValueError, match="expected 1 to 3"):
            chance(3, counts)
    for groups in ([], ["a", "b"]):
        with pytest.raises(ValueError, match="a group or None for each of 1 images"):
            relevance([("a",)], groups)
        with pytest.raises(ValueError, match="a group or None for each of 1 images"):
            evaluate_vectors(one, one, [{0}], groups)


def test_evaluation_needs_no_torch() -> None:
    code = (
        "import sys, client.institution.evaluation.folder; "
        "sys.exit(bool({'torch', 'torchmetrics', 'flwr'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
