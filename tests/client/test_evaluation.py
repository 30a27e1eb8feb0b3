"""Recall and rank against a plain count, and chance against shuffling."""

import subprocess
import sys
from statistics import mean, median

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.institution.evaluation import chance, measure, relevance, retrieve


def _brute(scores: np.ndarray, relevant: list[set[int]]) -> list[int]:
    """The rank of the best relevant image: every other image that is not worse comes before."""
    ranks = []
    for row, wanted in zip(scores.tolist(), relevant, strict=True):
        best = max(row[index] for index in wanted)
        ranks.append(1 + sum(s >= best for i, s in enumerate(row) if i not in wanted))
    return ranks


@given(st.integers(1, 12), st.integers(1, 15), st.integers(0, 2**32), st.booleans())
def test_retrieval_is_what_counting_gives(
    queries: int, gallery: int, seed: int, coarse: bool
) -> None:
    rng = np.random.default_rng(seed)
    texts, images = rng.normal(size=(queries, 4)), rng.normal(size=(gallery, 4))
    if coarse:  # many ties
        texts, images = np.sign(texts), np.sign(images)
    texts, images = texts.astype(np.float32), images.astype(np.float32)
    relevant = [
        set(rng.choice(gallery, rng.integers(1, gallery + 1), replace=False).tolist())
        for _ in range(queries)
    ]
    found, ranks = retrieve(texts, images, relevant), _brute(texts @ images.T, relevant)
    assert found.recall_at_1 == pytest.approx(mean(rank <= 1 for rank in ranks))
    assert found.recall_at_5 == pytest.approx(mean(rank <= 5 for rank in ranks))
    assert found.recall_at_10 == pytest.approx(mean(rank <= 10 for rank in ranks))
    assert found.median_rank == median(ranks)
    assert found.mean_rank == pytest.approx(mean(ranks))
    assert (found.queries, found.gallery) == (queries, gallery)


def test_ties_go_against_us() -> None:
    flat = np.ones((1, 2), np.float32)
    assert retrieve(flat, np.ones((7, 2), np.float32), [{3}]).median_rank == 7


def test_chance_is_what_shuffling_gives() -> None:
    rng = np.random.default_rng(0)
    counts = [1, 1, 3, 10]
    exact = chance(40, counts)
    best = np.array(
        [[1 + rng.permutation(40)[:count].min() for count in counts] for _ in range(20_000)]
    )
    assert exact.recall_at_1 == pytest.approx((best <= 1).mean(), abs=0.01)
    assert exact.recall_at_5 == pytest.approx((best <= 5).mean(), abs=0.01)
    assert exact.recall_at_10 == pytest.approx((best <= 10).mean(), abs=0.01)
    assert exact.mean_rank == pytest.approx(best.mean(), abs=0.15)
    assert exact.median_rank == np.median(best)
    assert chance(480, [1] * 5).recall_at_10 == pytest.approx(10 / 480)
    assert chance(3, [1]).recall_at_10 == 1 and chance(3, [3]).median_rank == 1


def test_relevance_joins_images_that_share_a_caption() -> None:
    queries, relevant = relevance([("a cat", "Pet"), ("pet ", "a dog"), ("a cat",)])
    assert queries == ["a cat", "Pet", "a dog"]
    assert relevant == [{0, 2}, {0, 1}, {1}]


def test_measure_asks_every_caption_of_the_gallery() -> None:
    class Letters:
        """Embeds by the first letter, or the first pixel."""

        def texts(self, texts: list[str]) -> np.ndarray:
            return np.eye(26, dtype=np.float32)[[ord(text[0]) - 97 for text in texts]]

        def pixels(self, pixels: np.ndarray) -> np.ndarray:
            return np.eye(26, dtype=np.float32)[pixels[:, 0, 0, 0]]

    pixels = np.arange(12, dtype=np.uint8).repeat(3).reshape(12, 3, 1, 1)
    captions = [(chr(97 + index),) for index in range(12)]
    found = measure(Letters(), pixels, captions)
    assert found.recall_at_1 == 1 and found.queries == found.gallery == 12


def test_nonsense_is_refused() -> None:
    one = np.ones((1, 2), np.float32)
    for texts, images, relevant in (
        (one, one, []),
        (one[:0], one, []),
        (one, one[:0], [{0}]),
        (one, one, [set()]),
        (one * np.nan, one, [{0}]),
        (one, one * np.inf, [{0}]),
    ):
        with pytest.raises(ValueError, match=r"queries|finite"):
            retrieve(texts, images, relevant)
    for counts in ([], [0], [4]):
        with pytest.raises(ValueError, match="expected 1 to 3"):
            chance(3, counts)


def test_evaluation_needs_no_torch() -> None:
    code = "import sys, client.institution.evaluation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
