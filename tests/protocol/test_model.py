"""The model contract: tokens, towers, updates, releases."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import MalformedMessage, StorageError
from protocol.model.embedder import Embedder
from protocol.model.release import parse_manifest, read_release, write_release
from protocol.model.settings import TrainingSettings
from protocol.model.tokens import RESERVED, HashTokenizer
from protocol.model.tower_settings import TowerSettings
from protocol.model.towers import TwoTowers
from protocol.model.update import (
    arrays_of,
    load_arrays,
    pack,
    pack_model,
    unpack,
    unpack_model,
)

TINY = TowerSettings(
    image_size=16, dim=8, image_width=16, image_stages=1, text_width=16, buckets=64, max_tokens=8
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)


@pytest.fixture(scope="module")
def model() -> TwoTowers:
    return TwoTowers.initial(TINY, 1)


# --- tokens


def test_tokens_are_the_same_on_every_machine() -> None:
    ids, mask = HashTokenizer(8192, 32)(["A red  CIRCLE!", "a", ""])
    assert ids.tolist() == [[1, 3678, 2013, 6000], [1, 3678, 0, 0], [1, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]


@given(st.lists(st.text(max_size=40), max_size=4))
def test_tokens_stay_in_range(texts: list[str]) -> None:
    ids, mask = HashTokenizer(64, 8)(texts)
    assert ids.shape == mask.shape and len(ids) == len(texts)
    assert ids.shape[1] <= 8
    words = ids[mask.bool() & (ids != 1)]
    assert bool(((words >= RESERVED) & (words < 64)).all())


# --- towers


def test_towers_are_seeded_and_leave_the_process_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first, again, other = (arrays_of(TwoTowers.initial(TINY, seed)) for seed in (1, 1, 2))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(first[name].tobytes() == again[name].tobytes() for name in first)
    assert any(first[name].tobytes() != other[name].tobytes() for name in first)
    assert all(values.dtype == np.float32 and values.ndim for values in first.values())


def test_embeddings_have_length_one_whatever_the_batch(model: TwoTowers) -> None:
    embedder = Embedder(model)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 16), np.uint8)
    images, texts = embedder.pixels(pixels), embedder.texts(["a", "a red circle", "", "b c d"])
    assert images.shape == (5, 8) and texts.shape == (4, 8)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(texts, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(embedder.pixels(pixels, batch=2), images, atol=1e-6)
    np.testing.assert_allclose(embedder.texts(["a"])[0], texts[0], atol=1e-6)
    assert embedder.texts([]).shape == (0, 8)
    with pytest.raises(ValueError, match="uint8"):
        embedder.pixels(pixels[:, :, :8])


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(TINY.to_dict(), JSON)) | JSON)
@settings(max_examples=50)
def test_tower_settings_refuse_anything_else(values: object) -> None:
    try:
        found = TowerSettings.from_dict(values)
    except MalformedMessage:
        return
    assert found.to_dict() == values


def test_tower_settings_round_trip_and_refuse_unknown_keys() -> None:
    assert TowerSettings.from_json(TINY.to_json()) == TINY
    for change in ({"new": 1}, {"dim": 9}, {"dim": True}, {"text_heads": 3}, {"buckets": 10**9}):
        with pytest.raises(MalformedMessage):
            TowerSettings.from_dict(TINY.to_dict() | change)
    for text in ("", "[", "[" * 5000, "null", json.dumps(TINY.to_dict()) + " " * (1 << 15)):
        with pytest.raises(MalformedMessage):
            TowerSettings.from_json(text)


def test_training_settings_round_trip_and_check() -> None:
    chosen = TrainingSettings(rounds=3, learning_rate=1e-4, seed=7, towers=TINY)
    assert TrainingSettings.from_run_config(chosen.to_run_config() | {"other": 1}) == chosen
    assert TrainingSettings.from_run_config({}) == TrainingSettings()
    for bad in (
        {"rounds": 0},
        {"rounds": "3"},
        {"rounds": True},
        {"learning-rate": math.nan},
        {"batch-size": 1},
        {"seed": -1},
        {"towers": 3},
        {"towers": "{}"},
    ):
        with pytest.raises(MalformedMessage):
            TrainingSettings.from_run_config(bad)


# --- updates


def test_update_round_trips_to_the_bit(model: TwoTowers) -> None:
    arrays = arrays_of(model)
    found = unpack(pack(arrays), arrays)
    assert list(found) == list(arrays)
    assert all(found[name].tobytes() == arrays[name].tobytes() for name in arrays)


def test_only_what_is_learned_travels() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    model.register_parameter("scale", torch.nn.Parameter(torch.tensor(2.0)))
    model[0].weight.requires_grad_(False)
    frozen = model[0].weight.clone()
    arrays = arrays_of(model)
    assert set(arrays) == {"0.bias", "1.weight", "1.bias", "scale"}
    assert arrays["scale"].shape == () and unpack(pack(arrays), arrays)["scale"] == 2
    learned = dict(model.named_parameters())["0.bias"]
    load_arrays(model, {name: values + 1 for name, values in arrays.items()})
    assert dict(model.named_parameters())["0.bias"] is learned, "in place: optimisers hold it"
    assert learned.requires_grad and learned.grad_fn is None
    for name, values in arrays_of(model).items():
        np.testing.assert_array_equal(values, arrays[name] + 1)
    assert torch.equal(model[0].weight, frozen) and model[1].running_mean.tolist() == [0, 0]
    for wrong in (arrays | {"0.weight": arrays["0.bias"]}, {"scale": arrays["scale"]}, {}):
        with pytest.raises(ValueError, match="missing or unknown"):
            load_arrays(model, wrong)


def _raw(data: bytes, dtype: str = "float32", shape: tuple[int, ...] = (2, 3)) -> Array:
    return Array(dtype, shape, "numpy.ndarray", data)


def test_update_refuses_what_is_not_asked_for() -> None:
    like = {"a": np.zeros((2, 3), np.float32)}
    good = pack(like)["a"].data
    huge = good.replace(b"(2, 3)", b"(2,33)")
    for array in (
        Array(np.zeros((3, 2), np.float32)),
        Array(np.zeros((2, 3), np.float64)),
        Array(np.full((2, 3), np.nan, np.float32)),
        Array(np.full((2, 3), np.inf, np.float32)),
        _raw(Array(np.zeros((2, 3), np.float64)).data),
        _raw(Array(np.zeros((3, 2), np.float32)).data),
        _raw(huge),
        _raw(good[:-1]),
        _raw(good + b"\0"),
        _raw(b""),
        _raw(b"\x80\x04pickle" + good[10:]),
        Array("float32", (2, 3), "torch.pickle", good),
    ):
        with pytest.raises(MalformedMessage, match="array a"):
            unpack(ArrayRecord({"a": array}), like)
    for names in ({}, {"b": like["a"]}, like | {"b": like["a"]}):
        with pytest.raises(MalformedMessage, match="named arrays"):
            unpack(pack(names), like)


@given(st.binary(max_size=300))
def test_update_survives_any_bytes(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        unpack(ArrayRecord({"a": _raw(data)}), {"a": np.zeros((2, 3), np.float32)})


def test_the_global_model_travels_as_one_array_and_comes_back_to_the_bit(model: TwoTowers) -> None:
    arrays = arrays_of(model)
    record = pack_model(arrays)
    assert len(record) == 1
    found = unpack_model(record, arrays)
    assert list(found) == list(arrays)
    for name, values in arrays.items():
        assert found[name].shape == values.shape and found[name].tobytes() == values.tobytes()


@given(st.integers(0, 20), st.sampled_from(["model", "other"]), st.booleans())
def test_a_model_of_another_size_or_name_is_refused(size: int, name: str, finite: bool) -> None:
    like = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((), np.float32)}
    values = np.full(size, 1.0 if finite else np.nan, np.float32)
    if size == 7 and name == "model" and finite:
        assert unpack_model(pack({name: values}), like)["b"] == 1
        return
    with pytest.raises(MalformedMessage):
        unpack_model(pack({name: values}), like)


# --- releases


def test_release_round_trips_and_is_named_by_its_contents(tmp_path: Path, model: TwoTowers) -> None:
    release = write_release(tmp_path / "a", model, {"recall": 0.5})
    again = write_release(tmp_path / "b", model, {"recall": 0.25})
    assert release.release_id == again.release_id == release.path.name
    assert len(release.release_id) == 16
    found = read_release(release.path)
    assert found == release and found.metrics == {"recall": 0.5}
    loaded, original = arrays_of(found.load()), arrays_of(model)
    assert all(loaded[name].tobytes() == original[name].tobytes() for name in original)
    assert Embedder(found).release_id == release.release_id
    assert sorted(path.name for path in release.path.parent.iterdir()) == [release.release_id]
    assert write_release(tmp_path / "a", model, {"recall": 9.0}).metrics == {"recall": 0.5}
    other = write_release(tmp_path / "a", TwoTowers.initial(TINY, 2), {})
    assert other.release_id != release.release_id


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
@pytest.mark.parametrize("how", ["flip", "cut", "grow", "remove"])
def test_a_damaged_release_is_refused_by_name(
    tmp_path: Path, model: TwoTowers, name: str, how: str
) -> None:
    release = write_release(tmp_path, model, {})
    file = release.path / name
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    changed = {"flip": data, "cut": data[:-1], "grow": data + b"\0"}
    file.unlink() if how == "remove" else file.write_bytes(changed[how])
    with pytest.raises(StorageError, match=name):
        read_release(release.path)


def test_weights_that_changed_after_the_check_are_refused(tmp_path: Path, model: TwoTowers) -> None:
    release = write_release(tmp_path, model, {})
    other = write_release(tmp_path, TwoTowers.initial(TINY, 2), {})
    (release.path / "model.safetensors").write_bytes(
        (other.path / "model.safetensors").read_bytes()
    )
    with pytest.raises(StorageError, match="SHA-256"):
        release.load()
    larger = replace(TINY, text_layers=2)
    with pytest.raises(StorageError, match="other arrays"):
        replace(other, settings=larger).load()
    with pytest.raises(StorageError, match="expected"):
        replace(other, settings=replace(TINY, dim=16)).load()


@given(st.binary(max_size=64) | JSON.map(lambda value: json.dumps(value).encode()))
def test_manifest_decoder_survives_any_bytes(data: bytes) -> None:
    with pytest.raises(StorageError, match=r"manifest\.json"):
        parse_manifest(Path("r"), data)


@given(key=st.sampled_from(["format", "release_id", "settings", "files", "metrics", "created"]))
@settings(max_examples=6)
@pytest.mark.parametrize("value", [None, [], {"model.safetensors": {"size": -1}}, "x" * 99, 1e400])
def test_manifest_decoder_checks_every_key(
    tmp_path_factory: pytest.TempPathFactory, model: TwoTowers, key: str, value: object
) -> None:
    release = write_release(tmp_path_factory.getbasetemp() / "manifests", model, {})
    manifest = json.loads((release.path / "manifest.json").read_text())
    for changed in (manifest | {key: value}, {k: v for k, v in manifest.items() if k != key}):
        with pytest.raises(StorageError):
            parse_manifest(release.path, json.dumps(changed).encode())
