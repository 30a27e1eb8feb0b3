"""Compressed updates: what arrives is what was meant, and nothing else is accepted."""

import numpy as np
import pytest
from flwr.app import ArrayRecord
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as numpy_arrays

from protocol.errors import MalformedMessage, TrainingError, UsageError
from protocol.model.compression import codec_of
from protocol.model.settings import TrainingSettings
from protocol.model.update import Arrays, pack

NAMES = ("none", "float16", "int8", "top-k:0.01", "top-k:0.1", "top-k:.5")
CHANGES = st.dictionaries(
    st.sampled_from(["z", "a", "m.weight"]),
    numpy_arrays(
        np.float32,
        st.sampled_from([(), (1,), (0,), (3,), (257,), (16, 40), (2, 3, 5)]),
        elements=st.floats(-100, 100, width=32),
    ),
)


def _generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def _change(seed: int = 0, *, size: int = 5000) -> Arrays:
    generator = _generator(seed)
    return {
        "small": generator.normal(0, 1e-4, (7, 11)).astype(np.float32),
        "large": generator.normal(0, 0.1, size).astype(np.float32),
        "one": generator.normal(0, 1, 1).astype(np.float32),
    }


@given(change=CHANGES, name=st.sampled_from(NAMES), seed=st.integers(0, 9))
def test_what_arrives_and_what_is_left_add_up(change: Arrays, name: str, seed: int) -> None:
    codec = codec_of(name)
    record, left = codec.encode(change, None, _generator(seed))
    found = codec.decode(record, change)
    assert list(found) == list(change)
    for key, values in change.items():
        assert found[key].shape == values.shape and found[key].dtype == np.float32
        if name.startswith("top-k"):
            # float32 rounds the sum of a value and its float16 rest once.
            np.testing.assert_allclose(found[key] + left[key], values, rtol=1e-6, atol=1e-6)
    assert bool(left) == (name.startswith("top-k") and bool(change))
    largest = max((np.abs(v).max(initial=0) for v in change.values()), default=0)
    bound = {"none": 0, "float16": largest / 2048 + 6e-8, "int8": largest / 127 * (1 + 1e-6)}
    for key, values in change.items() if name in bound else []:
        assert np.abs(found[key] - values).max(initial=0) <= bound[name]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_generator_gives_the_same_bytes(name: str) -> None:
    codec, change = codec_of(name), _change()
    again, other = (codec.encode(change, None, _generator(seed))[0] for seed in (5, 6))
    first = codec.encode(change, None, _generator(5))[0]
    assert [a.data for a in first.values()] == [a.data for a in again.values()]
    differ = [a.data for a in first.values()] != [a.data for a in other.values()]
    assert differ == (name == "int8")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_change_that_is_not_finite_is_not_sent(name: str, bad: float) -> None:
    change = _change()
    change["large"][17] = bad
    with pytest.raises(TrainingError, match="array large"):
        codec_of(name).encode(change, None, _generator())


def test_the_sizes_are_as_told() -> None:
    change = _change(size=100_000)
    size = sum(values.size for values in change.values())
    sizes = {name: _size(codec_of(name).encode(change, None, _generator())[0]) for name in NAMES}
    assert sizes["none"] / size == pytest.approx(4, abs=0.01)
    assert sizes["float16"] / size == pytest.approx(2, abs=0.01)
    assert sizes["int8"] / size == pytest.approx(1 + 4 / 256, abs=0.01)
    assert sizes["top-k:0.01"] / size == pytest.approx(0.01 * (2 + 2), abs=0.01)
    assert sizes["top-k:.5"] / size == pytest.approx(0.5 * 2 + 1 / 8, abs=0.01)


def _size(record: ArrayRecord) -> int:
    return sum(len(array.data) for array in record.values())


# --- int8


def test_int8_is_unbiased_and_each_block_has_its_own_scale() -> None:
    codec, change = codec_of("int8"), _change(size=600)
    change["large"][:256] *= 1e-3
    draws = 2000
    mean = {name: np.zeros(values.shape) for name, values in change.items()}
    generator = _generator()
    for _ in range(draws):
        found = codec.decode(codec.encode(change, None, generator)[0], change)
        for name, values in found.items():
            mean[name] += values / draws
    for name, start, end in (("small", 0, 77), ("large", 0, 256), ("large", 256, 512)):
        meant = change[name].ravel()[start:end].astype(np.float64)
        step = np.abs(meant).max() / 127
        # A rounding error has at most half a step of deviation; five of the mean's are allowed.
        wrong = np.abs(mean[name].ravel()[start:end] - meant).max()
        assert wrong < 5 * 0.5 * step / np.sqrt(draws)


@given(st.lists(st.floats(-(2.0**126), 2.0**126, width=32), max_size=9))
def test_int8_takes_any_scale_that_a_float_has(values: list[float]) -> None:
    change = {"a": np.array(values, np.float32)}
    codec = codec_of("int8")
    record, _ = codec.encode(change, None, _generator())
    largest = np.abs(change["a"]).max(initial=0)
    if largest / 127 > 1e30:
        with pytest.raises(MalformedMessage, match="scales"):
            codec.decode(record, change)
        return
    found = codec.decode(record, change)["a"]
    # Below 1e-40 a scale has few bits itself.
    assert np.abs(found - change["a"]).max(initial=0) <= largest / 127 * (1 + 1e-6) + 1e-40


# --- top-k


def test_top_k_sends_the_largest_over_all_arrays_and_of_equal_ones_the_first() -> None:
    change = {
        "b": np.array([0.5, -3, 0.25, 0.5], np.float32),
        "a": np.array([[0.5, 0, 0.5]], np.float32),
    }
    codec = codec_of("top-k:0.5")  # round(3.5) is 4
    record, left = codec.encode(change, None, _generator())
    found = codec.decode(record, change)
    assert found["b"].tolist() == [0.5, -3, 0, 0] and found["a"].tolist() == [[0.5, 0, 0.5]]
    assert left["b"].tolist() == [0, 0, 0.25, 0.5] and not left["a"].any()
    again, _ = codec.encode({n: np.zeros_like(v) for n, v in change.items()}, left, _generator())
    assert codec.decode(again, change)["b"].tolist() == [0, 0, 0.25, 0.5]


def test_error_feedback_brings_everything_across() -> None:
    """Descent on a quadratic: 2 % of the values a round, with and without the memory."""
    target = _change(3)
    codec = codec_of("top-k:0.02")

    def distance(remember: bool) -> float:
        current = {name: np.zeros_like(values) for name, values in target.items()}
        left: Arrays | None = None
        for _ in range(150):
            change = {name: 0.05 * (target[name] - current[name]) for name in target}
            record, left = codec.encode(change, left if remember else None, _generator())
            found = codec.decode(record, target)
            current = {name: current[name] + found[name] for name in target}
        return float(np.sqrt(sum(((current[n] - target[n]) ** 2).sum() for n in target)))

    start = float(np.sqrt(sum((values**2).sum() for values in target.values())))
    assert distance(True) < 0.35 * start < 0.6 * start < distance(False)


@pytest.mark.parametrize("size", [1, 7, 1000, 65_536, 65_537, 200_000])
@pytest.mark.parametrize("share", [0.00001, 0.01, 0.2, 1.0])
def test_positions_survive_in_the_smaller_form(size: int, share: float) -> None:
    change = {"a": _generator(1).normal(0, 1, size).astype(np.float16).astype(np.float32)}
    codec = codec_of(f"top-k:{share:f}")
    record, left = codec.encode(change, None, _generator())
    found = codec.decode(record, change)["a"]
    np.testing.assert_array_equal(found + left["a"], change["a"])
    assert np.abs(found[found != 0]).min() >= np.abs(left["a"]).max()
    count = max(1, round(share * size))
    assert (found != 0).sum() == count
    sparse, dense = 2 * count + 4 * -(-size // 65_536), -(-size // 8)
    taken = sum(array.numpy().nbytes for name, array in record.items() if name != "values")
    assert taken == min(sparse, dense) and ("bitmap" in record) == (dense <= sparse)


# --- foreign bytes


LIKE = {"b": np.zeros((2, 150), np.float32), "a": np.zeros(20, np.float32)}  # 320 values


def _int8(**changes: np.ndarray) -> ArrayRecord:
    return pack({"values": np.ones(320, np.int8), "scales": np.ones(3, np.float32)} | changes)


def _top_k(**changes: np.ndarray) -> ArrayRecord:
    return pack({"values": np.ones(32, np.float16)} | changes)


def _bitmap(*positions: int) -> np.ndarray:
    flags = np.zeros(320, np.bool_)
    flags[list(positions)] = True
    return np.packbits(flags)


TOP, FEW = "top-k:0.1", "top-k:0.05"  # 32 values in a bitmap, 16 values with their positions


def _few(*positions: int, **changes: np.ndarray) -> ArrayRecord:
    arrays = {"values": np.ones(16, np.float16), "counts": np.array([16], np.uint32)}
    return pack(arrays | {"positions": np.array(positions, np.uint16)} | changes)


HOSTILE: dict[str, tuple[str, ArrayRecord, str]] = {
    "no arrays": ("int8", pack({}), "named arrays"),
    "another codec": ("int8", pack(LIKE), "named arrays"),
    "short": ("int8", _int8(values=np.ones(319, np.int8)), "values"),
    "unsigned": ("int8", _int8(values=np.ones(320, np.uint8)), "values"),
    "beyond": ("int8", _int8(values=np.full(320, -128, np.int8)), "-127"),
    "few scales": ("int8", _int8(scales=np.ones(2, np.float32)), "scales"),
    "nan scale": ("int8", _int8(scales=np.full(3, np.nan, np.float32)), "finite"),
    "huge scale": ("int8", _int8(scales=np.full(3, 1e38, np.float32)), "scales"),
    "negative": ("int8", _int8(scales=np.full(3, -1, np.float32)), "scales"),
    "half nan": (
        "float16",
        pack({n: np.full(v.shape, np.nan, "f2") for n, v in LIKE.items()}),
        "finite",
    ),
    "half single": ("float16", pack(LIKE), "float16"),
    "no positions": (TOP, _top_k(), "named arrays"),
    "sparse for dense": (TOP, _few(*range(16)), "named arrays"),
    "dense for sparse": (FEW, _top_k(bitmap=_bitmap(*range(16))), "named arrays"),
    "few positions": (FEW, _few(*range(15)), "positions"),
    "wide positions": (FEW, _few(positions=np.arange(16, dtype=np.uint32)), "positions"),
    "unsorted": (FEW, _few(1, 0, *range(2, 16)), "ascending"),
    "twice": (FEW, _few(0, 0, *range(2, 16)), "ascending"),
    "too far": (FEW, _few(*range(15), 320), "below 320, got 320"),
    "few counts": (FEW, _few(*range(16), counts=np.zeros(0, np.uint32)), "counts"),
    "fewer": (FEW, _few(*range(16), counts=np.array([15], np.uint32)), "16 in all, got 15"),
    "memory": (FEW, _few(*range(16), counts=np.array([2**32 - 1], np.uint32)), "in all"),
    "many values": (FEW, _few(*range(16), values=np.ones(17, np.float16)), "values"),
    "wide values": (FEW, _few(*range(16), values=np.ones(16, np.float32)), "values"),
    "nan value": (FEW, _few(*range(16), values=np.full(16, np.nan, "f2")), "finite"),
    "long bitmap": (TOP, _top_k(bitmap=np.zeros(41, np.uint8)), "bitmap"),
    "few bits": (TOP, _top_k(bitmap=_bitmap(*range(31))), "expected 32 positions, got 31"),
    "many bits": (TOP, _top_k(bitmap=_bitmap(*range(33))), "expected 32 positions, got 33"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_another_record_is_refused(name: str) -> None:
    compression, record, why = HOSTILE[name]
    with pytest.raises(MalformedMessage, match=why):
        codec_of(compression).decode(record, LIKE)


def test_bits_beyond_the_last_value_are_refused() -> None:
    like = {"a": np.zeros(13, np.float32)}
    codec = codec_of("top-k:0.1")
    good = pack({"values": np.ones(1, "f2"), "bitmap": np.array([0, 8], np.uint8)})
    assert codec.decode(good, like)["a"].tolist() == [0.0] * 12 + [1.0]
    with pytest.raises(MalformedMessage, match="below 13"):
        bad = pack({"values": np.ones(1, "f2"), "bitmap": np.array([0, 4], np.uint8)})
        codec.decode(bad, like)


@given(
    name=st.sampled_from(NAMES),
    dtype=st.sampled_from(["int8", "uint8", "uint16", "uint32", "float16", "float32"]),
    values=st.binary(max_size=700),
    positions=st.binary(max_size=200),
    second=st.sampled_from(["scales", "bitmap"]),
)
@settings(max_examples=200)
def test_decoders_survive_any_bytes(
    name: str, dtype: str, values: bytes, positions: bytes, second: str
) -> None:
    size = np.dtype(dtype).itemsize
    first = np.frombuffer(values, np.int8 if name == "int8" else np.float16, len(values) // 2)
    other = np.frombuffer(positions, dtype, len(positions) // size)
    try:
        found = codec_of(name).decode(pack({"values": first, second: other}), LIKE)
    except MalformedMessage:
        return
    assert all(np.isfinite(values).all() for values in found.values())


@given(
    st.lists(st.integers(0, 2**16 - 1), min_size=3, max_size=3),
    st.lists(st.integers(0, 2**32 - 1) | st.integers(0, 3), min_size=2, max_size=2),
)
def test_positions_that_are_taken_are_ascending_and_in_range(
    positions: list[int], counts: list[int]
) -> None:
    like = {"a": np.zeros(70_000, np.float32)}
    record = pack(
        {
            "values": np.ones(3, np.float16),
            "positions": np.array(positions, np.uint16),
            "counts": np.array(counts, np.uint32),
        }
    )
    blocks = [block for block, count in enumerate(counts) for _ in range(min(count, 4))]
    where = [65_536 * block + low for block, low in zip(blocks, positions, strict=False)]
    good = sum(counts) == 3 and where == sorted(set(where)) and where[-1] < 70_000
    try:
        found = codec_of("top-k:0.00004").decode(record, like)
    except MalformedMessage:
        assert not good
        return
    assert good and np.flatnonzero(found["a"]).tolist() == where


def test_every_setting_has_its_codec() -> None:
    for name in NAMES:
        codec_of(TrainingSettings(compression=name).compression)
    for bad in ("", "zip", "top-k:", "top-k:2", "top-k:nan", "top-k:-1"):
        with pytest.raises(UsageError, match="compression"):
            codec_of(bad)
