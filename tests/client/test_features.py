"""Features of frozen encoders: computed once, kept, and never taken for another's."""

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from threading import Barrier, Thread

import numpy as np
import pytest
import torch
from PIL import Image

from client.institution.features import FeatureCache, image_features, text_features
from client.institution.images import load_pixels
from client.institution.pairs import Pair, PairFolder, read_pairs, write_pairs
from client.institution.reading import Source
from client.institution.training import train_epochs
from client.institution.training_set import Captions, FeatureSet, PictureSet
from protocol.errors import StorageError
from protocol.model.accelerated import Features, Floats
from protocol.model.pretrained import Pretrained
from protocol.model.settings import TrainingSettings
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers
from protocol.model.update import arrays_of

TINY = TowerSettings(
    image_size=16, dim=16, image_width=16, image_stages=1, text_width=16, buckets=256, max_tokens=8
)
SETTINGS = TrainingSettings(
    batch_size=8, learning_rate=5e-3, train="heads", image_augmentation="none", towers=TINY
)
COUNT = 12


class Counted(Features):
    """Knows how many rows it was asked for."""

    def __init__(self, model: TwoTowers) -> None:
        super().__init__(model)
        self.rows = 0

    def images(self, pixels: torch.Tensor) -> Floats:
        self.rows += len(pixels)
        return super().images(pixels)

    def texts(self, ids: torch.Tensor, mask: torch.Tensor) -> Floats:
        self.rows += len(ids)
        return super().texts(ids, mask)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path: Path) -> PairFolder:
    root = tmp_path / "data"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(COUNT):
        paint(root / f"{number}.png", rng)
    said = [(f"picture {number}", f"number {number}") for number in range(COUNT)]
    write_pairs(root, [Pair(f"{n}.png", said[n], "train") for n in range(COUNT)], None)
    return read_pairs(root)


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[FeatureCache]:
    found = FeatureCache(tmp_path / "cache")
    yield found
    found.close()


def paint(path: Path, rng: np.random.Generator) -> None:
    Image.fromarray(rng.integers(0, 256, (20, 24, 3), np.uint8)).save(path)


def count(
    model: TwoTowers, cache: FeatureCache, folder: PairFolder, views: int = 1, names: str = "none"
) -> tuple[int, Floats]:
    """How many rows had to be computed, and the features."""
    features = Counted(model)
    found, kept, skips = image_features(model, features, cache, folder, folder.pairs, views, names)
    assert len(found) == len(kept) == len(folder.pairs) - len(skips)
    return features.rows, found


# --- computed once


def test_what_is_kept_is_not_computed_again(folder: PairFolder, cache: FeatureCache) -> None:
    model = TwoTowers.initial(TINY, 0)
    first, features = count(model, cache, folder)
    again, kept = count(model, cache, folder)
    assert (first, again) == (COUNT, 0)
    np.testing.assert_array_equal(kept, features)
    pixels, _, _ = _pixels(folder)
    expected = model.image_features(torch.from_numpy(pixels)).detach().numpy()
    np.testing.assert_allclose(features[:, 0], expected, atol=1e-6)


def test_texts_are_computed_once_whatever_else_is_asked(cache: FeatureCache) -> None:
    model = TwoTowers.initial(TINY, 0)
    texts = ["a", "a much longer text than that", "b b", ""]
    for asked, rows in ((texts, 4), (texts[::-1], 0), ([*texts, "new"], 1)):
        features = Counted(model)
        found = text_features(model, features, cache, asked)
        assert features.rows == rows
        for text, row in zip(asked, found, strict=True):
            expected = model.text_features(*model.tokenizer([text])).detach().numpy()[0]
            np.testing.assert_allclose(row, expected, atol=1e-6)


def test_an_image_that_changes_is_computed_anew_and_one_that_moves_is_not(
    folder: PairFolder, cache: FeatureCache
) -> None:
    model = TwoTowers.initial(TINY, 0)
    _, before = count(model, cache, folder)
    paint(folder.root / "3.png", np.random.default_rng(9))
    (folder.root / "5.png").rename(folder.root / "x.png")
    (folder.root / "6.png").rename(folder.root / "5.png")
    (folder.root / "x.png").rename(folder.root / "6.png")
    rows, after = count(model, cache, folder)
    assert rows == 1
    changed = [n for n in range(COUNT) if not np.array_equal(before[n], after[n])]
    assert changed == [3, 5, 6]
    np.testing.assert_array_equal(after[[5, 6]], before[[6, 5]])


@pytest.mark.parametrize(
    "change",
    [
        {"image_mean": (0.4, 0.5, 0.6)},
        {"image_crop": 0.5},
        {"image_mirror": True},
        {"image_resample": "bilinear"},
        {"image_size": 32},
        {"image_width": 32},
    ],
)
def test_another_encoder_or_preparation_shares_no_row(
    folder: PairFolder, cache: FeatureCache, change: dict[str, object]
) -> None:
    count(TwoTowers.initial(TINY, 0), cache, folder)
    other = TwoTowers.initial(replace(TINY, **change), 0)
    rows, found = count(other, cache, folder)
    assert rows == COUNT
    fresh = _fresh(other, folder)
    np.testing.assert_array_equal(found, fresh)


def test_only_what_a_feature_depends_on_parts_rows(folder: PairFolder, cache: FeatureCache) -> None:
    count(TwoTowers.initial(TINY, 0), cache, folder)
    wider = TwoTowers.initial(TINY, 0)
    wider.settings = replace(TINY, dim=32, text_layers=2)
    assert count(wider, cache, folder)[0] == 0


def test_random_weights_of_another_seed_share_no_row(
    folder: PairFolder, cache: FeatureCache
) -> None:
    """Nothing in the settings tells them apart: no SHA-256 names weights that no file holds."""
    first, second = TwoTowers.initial(TINY, 0), TwoTowers.initial(TINY, 1)
    count(first, cache, folder)
    rows, found = count(second, cache, folder)
    assert rows == COUNT
    np.testing.assert_array_equal(found, _fresh(second, folder))
    for model, rows in ((first, 1), (second, 1), (first, 0)):
        features = Counted(model)
        text_features(model, features, cache, ["a"])
        assert features.rows == rows


# --- views


def test_views_differ_and_are_the_same_every_time(
    folder: PairFolder, cache: FeatureCache, tmp_path: Path
) -> None:
    model = TwoTowers.initial(TINY, 0)
    rows, found = count(model, cache, folder, 4, "crop,flip")
    assert rows == 4 * COUNT and found.shape == (COUNT, 4, model.image.width)
    np.testing.assert_array_equal(found[:, 0], _fresh(model, folder)[:, 0])
    # A crop may happen to be the whole picture.
    assert len({view.tobytes() for picture in found for view in picture}) > 3.5 * COUNT
    other = FeatureCache(tmp_path / "other")
    np.testing.assert_array_equal(count(model, other, folder, 4, "crop,flip")[1], found)
    other.close()
    assert count(model, cache, folder, 4, "crop,flip")[0] == 0
    _, recoloured = count(model, cache, folder, 2, "colour")
    np.testing.assert_array_equal(recoloured[:, 0], found[:, 0])
    assert not np.array_equal(recoloured[:, 1], found[:, 1])


def test_training_draws_every_view(folder: PairFolder, cache: FeatureCache) -> None:
    model = TwoTowers.initial(TINY, 0)
    _, found = count(model, cache, folder, 3, "crop")
    captions = PictureSet(*_captioned(folder)).captions
    texts = np.zeros((len(captions.numbered()[0]), model.text.width), np.float32)
    data = FeatureSet(found, texts, captions)
    data.prepare(model, SETTINGS)
    generator, seen = torch.Generator().manual_seed(0), set[bytes]()
    for _ in range(30):
        seen.add(data.draw_images(torch.tensor([4]), generator)[0].numpy().tobytes())
    assert seen == {view.tobytes() for view in found[4]}


def test_dropout_hides_the_share_asked_and_keeps_the_mean(folder: PairFolder) -> None:
    model = TwoTowers.initial(TINY, 0)
    captions = PictureSet(*_captioned(folder)).captions
    images = np.ones((COUNT, 1, 400), np.float32)
    texts = np.ones((len(captions.numbered()[0]), 400), np.float32)
    data = FeatureSet(images, texts, captions)
    data.prepare(model, replace(SETTINGS, image_dropout=0.75, text_dropout=0.2))
    generator, all_items = torch.Generator().manual_seed(0), torch.arange(COUNT)
    (shown,) = data.draw_images(all_items, generator)
    (said,) = data.draw_texts(all_items, generator)
    assert shown.unique().tolist() == [0, 4] and said.unique().tolist() == [0, 1.25]
    assert float((shown == 0).float().mean()) == pytest.approx(0.75, abs=0.03)
    assert float((said == 0).float().mean()) == pytest.approx(0.2, abs=0.03)


# --- what goes wrong


def test_an_image_that_does_not_decode_costs_itself_alone(
    folder: PairFolder, cache: FeatureCache
) -> None:
    (folder.root / "2.png").write_bytes(b"not a picture")
    (folder.root / "7.png").unlink()
    model = TwoTowers.initial(TINY, 0)
    features = Counted(model)
    for views in (1, 2):
        _, kept, skips = image_features(model, features, cache, folder, folder.pairs, views, "crop")
        assert kept == [n for n in range(COUNT) if n not in (2, 7)]
        assert sorted(skip.where for skip in skips) == ["2.png", "7.png"]


@pytest.mark.parametrize("foreign", [b"", b"\0" * 7, b"\0" * 4000, "text", 5, None, 2.5])
def test_a_row_of_another_shape_is_computed_again(
    folder: PairFolder, cache: FeatureCache, tmp_path: Path, foreign: object
) -> None:
    model = TwoTowers.initial(TINY, 0)
    if foreign == "text":
        foreign = "x" * (4 * model.image.width)
    _, features = count(model, cache, folder)
    with sqlite3.connect(tmp_path / "cache" / "features.sqlite") as rows:
        rows.execute("UPDATE rows SET row=?", (foreign,))
    rows.close()
    computed, found = count(model, cache, folder)
    assert computed == COUNT
    np.testing.assert_array_equal(found, features)
    assert count(model, cache, folder)[0] == 0


def test_a_file_that_is_no_cache_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "features.sqlite").write_bytes(b"something else" * 100)
    with pytest.raises(StorageError, match="cache of features") as caught:
        FeatureCache(tmp_path)
    assert "remove features.sqlite" in caught.value.hint


def test_nobody_else_reads_the_cache(cache: FeatureCache, tmp_path: Path) -> None:
    assert (tmp_path / "cache").stat().st_mode & 0o077 == 0
    assert (tmp_path / "cache" / "features.sqlite").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("shared", [True, False], ids=["one cache", "two on one file"])
def test_threads_may_share_a_cache(
    folder: PairFolder, cache: FeatureCache, tmp_path: Path, shared: bool
) -> None:
    model, start = TwoTowers.initial(TINY, 0), Barrier(2)
    caches = [cache, cache if shared else FeatureCache(tmp_path / "cache")]
    found: list[Floats] = []

    def work(mine: FeatureCache) -> None:
        start.wait()
        for _ in range(5):
            found.append(count(model, mine, folder, 3, "crop")[1])

    threads = [Thread(target=work, args=(one,)) for one in caches]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 10
    for one in found:
        np.testing.assert_array_equal(one, found[0])
    if not shared:
        caches[1].close()


# --- what training makes of them


def test_training_on_features_is_training_on_pictures(folder: PairFolder, tmp_path: Path) -> None:
    source = Source(folder.root, cache=str(tmp_path / "features"))
    trained = []
    for data in (
        source.read("train", TwoTowers.initial(TINY, 0), SETTINGS).data,
        PictureSet(*_captioned(folder)),
    ):
        model = Pretrained(TINY, {}, "").start(SETTINGS)
        loss = train_epochs(model, data, SETTINGS, torch.Generator().manual_seed(4), 3)
        trained.append((loss, arrays_of(model)))
        assert isinstance(data, FeatureSet) == (len(trained) == 1)
    (loss, on_features), (expected_loss, on_pictures) = trained
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    assert set(on_features) == set(on_pictures)
    before = arrays_of(Pretrained(TINY, {}, "").start(SETTINGS))
    for name, values in on_features.items():
        np.testing.assert_allclose(values, on_pictures[name], atol=1e-4, err_msg=name)
        if name.endswith("head.linear.weight"):
            assert np.abs(values - before[name]).max() > 1e-3, "it learned"


def _pixels(folder: PairFolder) -> tuple[np.ndarray, list[int], object]:
    return load_pixels(folder, folder.pairs, TINY.image_size, None, TINY.image_resample)


def _captioned(folder: PairFolder) -> tuple[np.ndarray, Captions]:
    return _pixels(folder)[0], Captions(tuple(pair.captions for pair in folder.pairs))


def _fresh(model: TwoTowers, folder: PairFolder) -> Floats:
    """Features without anything kept."""
    empty = FeatureCache(folder.root.parent / f"fresh-{id(model)}")
    found = count(model, empty, folder)[1]
    empty.close()
    return found
