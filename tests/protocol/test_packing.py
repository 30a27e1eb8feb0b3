"""Coefficient packing against NumPy, by exact products over the integers."""

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.errors import UsageError
from protocol.insecure_twin import InsecureTwin
from protocol.packing import Layout
from protocol.params import FAST, PRESETS, PRIVATE, Preset
from protocol.plan import Costs, best, plans
from protocol.scheme import EncryptedScores
from protocol.wire import IndexDescription, score_request, score_response

WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128)
N = 4096
Floats = NDArray[np.float32]
Integers = NDArray[np.int64]

presets = st.sampled_from(list(PRESETS.values()))
quick = settings(deadline=None, max_examples=60)


def vectors(count: int, dim: int, seed: int) -> Floats:
    """Rows of norm 1 or less, some of them along one axis, some zero."""
    generator = np.random.default_rng(seed)
    rows = generator.standard_normal((count, dim))
    rows /= np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    kinds = generator.integers(0, 8, count)
    rows[kinds == 0] = 0
    rows[kinds == 1] = -np.eye(dim)[generator.integers(dim)]
    rows[kinds == 2] *= generator.random()
    return rows.astype(np.float32)


def shifted(polynomial: Integers, places: int) -> Integers:
    """The polynomial times X^places modulo X^N + 1."""
    turned = np.roll(polynomial, places)
    turned[:places] *= -1
    return turned


def summed_product(question: Integers, block: Integers) -> list[int]:
    """sum_g question_g * block_g, exactly: factors of 31 and of 18 bits fit 64 bits in sum."""
    low, high = np.zeros(N, np.int64), np.zeros(N, np.int64)
    for chunk, items in zip(question, block, strict=True):
        for j in np.flatnonzero(chunk):
            turned = shifted(items.astype(np.int64), int(j))
            upper, lower = divmod(int(chunk[j]), 2**31)
            low += lower * turned
            high += upper * turned
    return [(int(a) << 31) + int(b) for a, b in zip(high, low, strict=True)]


def exact(layout: Layout, question: Floats, items: Floats) -> list[int]:
    """Every score at its scale, from the rounded coordinates."""
    scaled = np.rint(question.astype(np.float64) * 2.0**layout.preset.query_scale_bits)
    rounded = np.rint(items.astype(np.float64) * 2.0**layout.preset.item_scale_bits)
    return [
        sum(int(a) * int(b) for a, b in zip(scaled.tolist(), row, strict=True))
        for row in rounded.tolist()
    ]


# --- the products


@settings(deadline=None, max_examples=40)
@given(
    presets,
    st.integers(1, 80),
    st.sampled_from(WIDTHS),
    st.integers(1, 60),
    st.integers(0, 2**32 - 1),
)
def test_score_coefficients_are_the_inner_products(
    preset: Preset, dim: int, width: int, count: int, seed: int
) -> None:
    layout = Layout(preset, dim, width, count)
    count = min(count, layout.block_items)
    question, items = vectors(1, dim, seed)[0], vectors(count, dim, seed + 1)
    product = summed_product(layout.question_polynomials(question), layout.block_polynomials(items))
    scores = product[width - 1 :: width]
    assert len(scores) == layout.block_items
    # To the last bit: so no product that wraps around and no other item reaches a score.
    assert scores[:count] == exact(layout, question, items)
    assert scores[count:] == [0] * (layout.block_items - count)
    # Rounding moves a coordinate by half a unit of its scale at most.
    wanted = items.astype(np.float64) @ question.astype(np.float64)
    got = np.array(scores[:count], np.float64) / 2.0**preset.score_scale_bits
    by_item = np.abs(question).sum(dtype=np.float64) / 2 ** (preset.item_scale_bits + 1)
    by_question = np.abs(items).sum(axis=1, dtype=np.float64) / 2 ** (preset.query_scale_bits + 1)
    assert (np.abs(got - wanted) <= by_item + by_question + dim / 2**48 + 1e-13).all()


@quick
@given(st.sampled_from(WIDTHS), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_a_full_block_gives_each_item_its_own_score(width: int, dim: int, seed: int) -> None:
    layout = Layout(FAST, dim, width, N)
    items = vectors(layout.block_items, dim, seed)
    question = layout.question_polynomials(vectors(1, dim, seed + 1)[0])
    before = summed_product(question, layout.block_polynomials(items))[width - 1 :: width]
    changed = seed % layout.block_items
    items[changed] = -items[changed]
    after = summed_product(question, layout.block_polynomials(items))[width - 1 :: width]
    assert after[changed] == -before[changed]
    del before[changed], after[changed]
    assert before == after


def test_by_hand() -> None:
    layout = Layout(FAST, 3, 2, 2)
    unit = 2**FAST.item_scale_bits
    block = layout.block_polynomials(np.array([[0.5, 0.25, 0.125], [0, -1, 0]], np.float32))
    # Chunk 0 has coordinates 0 and 1 of each item turned about, chunk 1 has coordinate 2.
    assert block[:, :4].tolist() == [
        [unit // 4, unit // 2, -unit, 0],
        [0, unit // 8, 0, 0],
    ]
    assert not block[:, 4:].any()
    question = layout.question_polynomials(np.array([0.5, -0.25, 0.125], np.float32))
    one = 2**FAST.query_scale_bits
    assert question[:, :2].tolist() == [[one // 2, -one // 4], [one // 8, 0]]
    assert not question[:, 2:].any()


@quick
@given(presets, st.integers(1, 1024), st.sampled_from(WIDTHS), st.integers(0, 2**32 - 1))
def test_shapes_and_sizes_of_coefficients(preset: Preset, dim: int, width: int, seed: int) -> None:
    layout = Layout(preset, dim, width, 3)
    question = layout.question_polynomials(vectors(1, dim, seed)[0])
    block = layout.block_polynomials(vectors(3, dim, seed))
    assert question.shape == block.shape == (-(-dim // width), N)
    assert (question.dtype, block.dtype) == (np.int64, np.int32)
    assert np.abs(question).max() <= 1.002 * 2**preset.query_scale_bits
    assert np.abs(block).max() <= 1.002 * 2**preset.item_scale_bits
    # A chunk of a question has its coordinates below X^width, those of three items below X^3width.
    assert not question[:, width:].any()
    assert not block[:, 3 * width :].any()


# --- bytes


@pytest.mark.parametrize("preset", [PRIVATE, FAST], ids=lambda preset: str(preset.name))
@pytest.mark.parametrize(("dim", "width", "items"), [(1, 1, 1), (5, 2, 5000), (70, 128, 99)])
def test_byte_counts_are_those_of_what_is_sent(
    preset: Preset, dim: int, width: int, items: int
) -> None:
    layout = Layout(preset, dim, width, items)
    described = IndexDescription("museum", "0" * 16, 1, layout)
    key = InsecureTwin().keygen(preset)
    chunks = key.encrypt_query(layout.question_polynomials(vectors(1, dim, 0)[0]))
    request = score_request(described, key.public_keys(layout.public_keys), chunks)
    sent = [*request.public_keys, *request.chunks]
    assert layout.upload_bytes == sum(len(one.c0) + len(one.seed) for one in sent)
    assert layout.upload_bytes <= request.ByteSize() <= layout.upload_bytes + 16 * (len(sent) + 4)
    c0 = np.zeros((layout.blocks, layout.block_items), np.uint32)
    c1 = np.zeros((layout.blocks, N), np.uint32)
    runs = [
        score_response(layout, EncryptedScores(i, c0[i : i + 3], c1[i : i + 3]))
        for i in range(0, layout.blocks, 3)
    ]
    assert layout.download_bytes == sum(len(run.c0) + len(run.c1) for run in runs)


def test_byte_counts_by_hand() -> None:
    layout = Layout(PRIVATE, 256, 8, 10_000)
    assert (layout.chunks, layout.block_items, layout.blocks) == (32, 512, 20)
    assert layout.ciphertext_lengths == [4096 * 27 // 8, 4096 * 27 // 8, 4096 * 26 // 8]
    # 2^80 / 2^59 leaves 21 bits a score, 1.7 ternary digits a coefficient: two keys and one.
    assert layout.public_keys == 3
    assert layout.upload_bytes == 35 * (4096 * 80 // 8 + 64)
    assert layout.download_bytes == 20 * (4096 * 25 + 512 * 21) // 8


def moved(layout: Layout) -> int:
    return layout.upload_bytes + layout.download_bytes


@settings(deadline=None, max_examples=300)
@given(presets, st.integers(1, 1024), st.integers(1, 10_000_000) | st.integers(1, 200))
@example(PRIVATE, 1, 1)
def test_smallest_is_no_worse_than_any_other(preset: Preset, dim: int, items: int) -> None:
    smallest = best(plans(preset, dim, items, Costs()), "bytes").layout
    assert (smallest.preset, smallest.dim, smallest.items) == (preset, dim, items)
    for width in WIDTHS:
        assert moved(smallest) <= moved(Layout(preset, dim, width, items))


@quick
@given(presets, st.integers(1, 1024), st.sampled_from(WIDTHS), st.integers(1, 10_000_000))
def test_blocks_hold_all_items_and_chunks_all_coordinates(
    preset: Preset, dim: int, width: int, items: int
) -> None:
    layout = Layout(preset, dim, width, items)
    assert (layout.blocks - 1) * layout.block_items < items <= layout.blocks * layout.block_items
    assert (layout.chunks - 1) * width < dim <= layout.chunks * width
    assert layout.block_items * width == N


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"dim": 0}, "1 to 1024 coordinates, got 0"),
        ({"dim": -1}, "1 to 1024 coordinates"),
        ({"dim": 1025}, "1 to 1024 coordinates, got 1025"),
        ({"chunk_width": 0}, "chunk width"),
        ({"chunk_width": 3}, "chunk width .* got 3"),
        ({"chunk_width": 256}, "chunk width"),
        ({"chunk_width": -1}, "chunk width"),
        ({"items": 0}, "1 to .* items, got 0"),
        ({"items": -5}, "1 to .* items, got -5"),
        ({"items": 2**40}, "1 to .* items, got 1099511627776"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(changes: dict[str, int], says: str) -> None:
    numbers: dict[str, Any] = {"dim": 8, "chunk_width": 4, "items": 10, **changes}
    with pytest.raises(UsageError, match=says):
        Layout(PRIVATE, **numbers)


@pytest.mark.parametrize("dim", [0, -1, 1025])
def test_smallest_refuses_an_impossible_width_too(dim: int) -> None:
    with pytest.raises(UsageError):
        best(plans(PRIVATE, dim, 10, Costs()), "bytes")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1.01, -3.0, 3e38])
def test_vectors_that_are_not_finite_or_too_long_are_refused(bad: float) -> None:
    layout = Layout(PRIVATE, 8, 4, 10)
    question = np.zeros(8, np.float32)
    question[5] = bad
    with pytest.raises(UsageError, match="norm 1 at most"):
        layout.question_polynomials(question)
    with pytest.raises(UsageError, match="norm 1 at most"):
        layout.block_polynomials(np.stack([np.zeros_like(question), question]))


def test_a_norm_that_float32_rounds_above_one_is_taken() -> None:
    layout = Layout(PRIVATE, 8, 4, 10)
    question = np.full(8, 1.0005 / np.sqrt(8), np.float32)
    assert layout.question_polynomials(question).any()


@pytest.mark.parametrize("shape", [(7,), (9,), (0,), (1, 8), (8, 1)])
def test_a_question_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    layout = Layout(PRIVATE, 8, 4, 10)
    with pytest.raises(UsageError, match="8 coordinates"):
        layout.question_polynomials(np.zeros(shape, np.float32))


@pytest.mark.parametrize("shape", [(2, 7), (2, 9), (8,), (2, 2, 8)])
def test_items_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    layout = Layout(PRIVATE, 8, 4, 10)
    with pytest.raises(UsageError, match=re.escape(f"8 coordinates, got {shape}")):
        layout.block_polynomials(np.zeros(shape, np.float32))


@pytest.mark.parametrize("count", [0, 33])
def test_too_many_items_for_a_block_are_refused(count: int) -> None:
    layout = Layout(PRIVATE, 2, 128, 10)
    assert layout.block_items == 32
    with pytest.raises(UsageError, match=f"1 to 32 items, got {count}"):
        layout.block_polynomials(np.zeros((count, 2), np.float32))
