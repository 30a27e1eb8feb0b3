"""Ring arithmetic against exact products over the integers."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.ntt import forward_lanes, inverse_lanes
from protocol.params import FAST, PRIVATE, Preset
from protocol.ring import U32, Ring, ring

MODULI = PRIVATE.moduli
DEGREES = st.sampled_from([8, 16, 32, 64])
SEEDS = st.integers(0, 2**32 - 1)
quick = settings(deadline=None, max_examples=50)


def uniform(one: Ring, seed: int, *shape: int) -> U32:
    """Residues of every prime, with 0 and q-1 more often than chance would have them."""
    generator = np.random.default_rng(seed)
    column = one.moduli[:, None]
    drawn = generator.integers(0, column, (*shape, len(one.moduli), one.degree), np.uint64)
    extreme = generator.choice([0, 1, 2], drawn.shape, p=[0.8, 0.1, 0.1])
    chosen = np.choose(extreme, [drawn, np.zeros_like(drawn), column - np.uint64(1) + drawn * 0])
    return chosen.astype(np.uint32)


def negacyclic(left: list[int], right: list[int]) -> list[int]:
    """The product in Z[X]/(X^N + 1), by its definition; zeros cost nothing."""
    product = [0] * len(left)
    some = [(j, b) for j, b in enumerate(right) if b]
    for i, a in enumerate(left):
        if a:
            for j, b in some:
                if i + j < len(left):
                    product[i + j] += a * b
                else:
                    product[i + j - len(left)] -= a * b
    return product


def through_ntt(one: Ring, left: list[int], right: list[int]) -> NDArray[np.int64]:
    """The product of small signed polynomials by way of NTT form, [k, N]."""
    both = one.residues(np.array([left, right], np.int64))
    one.forward(both)
    words = both.astype(np.uint64)
    product = (words[0] * words[1] % one.moduli[:, None]).astype(np.uint32)
    one.inverse(product)
    signed: NDArray[np.int64] = product.astype(np.int64)
    return signed


def reduced(one: Ring, coefficients: list[int]) -> NDArray[np.int64]:
    return np.array([[c % int(q) for c in coefficients] for q in one.moduli], np.int64)


# --- transforms


@quick
@given(DEGREES, SEEDS)
def test_inverse_undoes_forward_and_forward_undoes_inverse(degree: int, seed: int) -> None:
    one = ring(degree, MODULI)
    original = uniform(one, seed, 3)
    there, back = original.copy(), original.copy()
    one.forward(there)
    assert (there < one.moduli[:, None]).all()
    assert (there != original).any()
    one.inverse(there)
    one.inverse(back)
    assert (back < one.moduli[:, None]).all()
    one.forward(back)
    np.testing.assert_array_equal(there, original)
    np.testing.assert_array_equal(back, original)


@quick
@given(DEGREES, SEEDS)
def test_sums_are_reduced(degree: int, seed: int) -> None:
    one = ring(degree, MODULI)
    left, right = uniform(one, seed, 3), uniform(one, seed + 1, 3)
    expected = (left.astype(np.uint64) + right) % one.moduli[:, None]
    np.testing.assert_array_equal(one.add(left, right), expected)


@pytest.mark.parametrize("preset", [PRIVATE, FAST], ids=lambda preset: str(preset.name))
def test_round_trip_at_full_degree(preset: Preset) -> None:
    one = ring(preset.ring_degree, preset.moduli)
    for seed in range(3):
        original = uniform(one, seed, 2)
        there = original.copy()
        one.forward(there)
        one.inverse(there)
        np.testing.assert_array_equal(there, original)


@pytest.mark.parametrize("degree", [8, 64, 4096])
@pytest.mark.parametrize("value", ["zero", "one", "largest", "alternating"])
def test_edge_values_stay_below_the_modulus_and_come_back(degree: int, value: str) -> None:
    one = ring(degree, MODULI)
    largest = np.broadcast_to(one.moduli[:, None] - np.uint64(1), (4, degree))
    ramp = np.arange(degree, dtype=np.uint64) % np.uint64(2)
    edges = {
        "zero": np.zeros_like(largest),
        "one": np.ones_like(largest),
        "largest": largest,
        "alternating": largest * ramp,
    }
    original = edges[value].astype(np.uint32)
    there, back = original.copy(), original.copy()
    one.forward(there)
    one.inverse(back)
    for transformed in (there, back):
        assert (transformed < one.moduli[:, None]).all()
    one.inverse(there)
    one.forward(back)
    np.testing.assert_array_equal(there, original)
    np.testing.assert_array_equal(back, original)


@quick
@given(DEGREES, st.data())
def test_forward_evaluates_at_every_odd_power_of_a_root_of_unity(
    degree: int, data: st.DataObject
) -> None:
    one = ring(degree, MODULI)
    coefficients = data.draw(st.lists(st.integers(-500, 500), min_size=degree, max_size=degree))
    transformed = one.residues(np.array(coefficients, np.int64))
    one.forward(transformed)
    identity = one.residues(np.eye(1, degree, 1, dtype=np.int64)[0])  # X, whose values are points
    one.forward(identity)
    for q, points, values in zip(one.moduli.tolist(), identity, transformed, strict=True):
        xs = [int(x) for x in points]
        assert len(set(xs)) == degree
        assert all(pow(x, degree, q) == q - 1 for x in xs)
        expected = [sum(c * pow(x, i, q) for i, c in enumerate(coefficients)) % q for x in xs]
        assert values.tolist() == expected


@pytest.mark.parametrize("degree", [8, 64, 1024])
def test_ntt_form_is_in_bit_reversed_order_under_the_smallest_root(degree: int) -> None:
    one = ring(degree, MODULI)
    points = one.residues(np.eye(1, degree, 1, dtype=np.int64)[0])
    one.forward(points)
    bits = degree.bit_length() - 1
    for q, xs in zip(one.moduli.tolist(), points.tolist(), strict=True):
        smallest = xs[0]
        assert smallest == min(xs)
        for i, x in enumerate(xs):
            turned = int(format(i, f"0{bits}b")[::-1], 2)
            assert x == pow(smallest, 2 * turned + 1, q)


@quick
@given(DEGREES, SEEDS)
def test_transforms_are_linear(degree: int, seed: int) -> None:
    one = ring(degree, MODULI)
    q = one.moduli[:, None]
    left, right = uniform(one, seed, 2)
    factor = np.uint64(seed % 1_000_003)
    combined = ((left * factor + right) % q).astype(np.uint32)
    for transform in (one.forward, one.inverse):
        a, b, c = left.copy(), right.copy(), combined.copy()
        for each in (a, b, c):
            transform(each)
        np.testing.assert_array_equal(c, (a * factor + b) % q)


@quick
@given(DEGREES, SEEDS, st.integers(1, 4), st.integers(1, 3))
def test_a_stack_is_transformed_one_by_one(degree: int, seed: int, m: int, n: int) -> None:
    one = ring(degree, MODULI)
    stack = uniform(one, seed, m, n)
    alone = stack.copy()
    one.forward(stack)
    for polynomial in alone.reshape(-1, len(MODULI), degree):
        one.forward(polynomial)
    np.testing.assert_array_equal(stack, alone)


# --- products


@quick
@given(DEGREES, st.data())
def test_a_product_is_the_exact_negacyclic_one(degree: int, data: st.DataObject) -> None:
    coefficients = st.lists(
        st.integers(-(2**63), 2**63 - 1) | st.sampled_from([0, 1, -1, *MODULI]),
        min_size=degree,
        max_size=degree,
    )
    left, right = data.draw(coefficients), data.draw(coefficients)
    one = ring(degree, MODULI)
    expected = reduced(one, negacyclic(left, right))
    np.testing.assert_array_equal(through_ntt(one, left, right), expected)


def test_a_sparse_product_at_full_degree_is_exact() -> None:
    one = ring(4096, MODULI)
    generator = np.random.default_rng(7)
    for _ in range(3):
        factors = []
        for _ in range(2):
            sparse = np.zeros(4096, np.int64)
            places = generator.choice(4096, 60, replace=False)
            sparse[places] = generator.integers(-(2**62), 2**62, 60)
            sparse[[0, 4095]] = 2**63 - 1, -(2**63)
            factors.append(sparse.tolist())
        expected = reduced(one, negacyclic(*factors))
        assert np.count_nonzero(expected[0]) > 1000
        np.testing.assert_array_equal(through_ntt(one, *factors), expected)


@pytest.mark.parametrize("degree", [8, 4096])
def test_x_to_the_n_is_minus_one(degree: int) -> None:
    one = ring(degree, MODULI)
    half = [0] * degree
    half[degree // 2] = 1
    product = through_ntt(one, half, half)
    np.testing.assert_array_equal(product[:, 0], one.moduli - np.uint64(1))
    assert not product[:, 1:].any()


# --- representations


@quick
@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=8, max_size=8))
def test_residues_of_signed_values(coefficients: list[int]) -> None:
    one = ring(8, MODULI)
    made = one.residues(np.array(coefficients, np.int64))
    assert made.dtype == np.uint32
    assert made.shape == (4, 8)
    np.testing.assert_array_equal(made, reduced(one, coefficients))


def test_residues_of_edge_values() -> None:
    one = ring(8, MODULI)
    q = MODULI[0]
    edges = [0, -1, q, -q, q - 1, 1 - q, 2**63 - 1, -(2**63)]
    made = one.residues(np.array(edges, np.int64))[0].tolist()
    assert made[:6] == [0, q - 1, 0, 0, q - 1, 1]
    assert made[6:] == [(2**63 - 1) % q, -(2**63) % q]


def test_residues_of_a_stack_keep_its_shape() -> None:
    one = ring(8, MODULI)
    stack = np.arange(-48, 0, dtype=np.int64).reshape(2, 3, 8)
    made = one.residues(stack)
    assert made.shape == (2, 3, 4, 8)
    np.testing.assert_array_equal(made[1, 2], one.residues(stack[1, 2]))


@quick
@given(DEGREES, SEEDS)
def test_to_montgomery_is_undone_by_one_reduction(degree: int, seed: int) -> None:
    one = ring(degree, MODULI)
    plain = uniform(one, seed)
    carried = one.to_montgomery(plain)
    assert carried.dtype == np.uint32
    for q, before, after in zip(MODULI, plain.tolist(), carried.tolist(), strict=True):
        assert after == [value * 2**32 % q for value in before]
        # Montgomery's reduction with the ring's own constant, in exact integers.
        negated = int(one.constants.negated_inverses[MODULI.index(q)])
        undone = [(x + (x * negated % 2**32) * q) >> 32 for x in after]
        assert [value % q for value in undone] == before


# --- the pruned inverse


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16, 32, 64, 128])
@pytest.mark.parametrize("degree", [128, 256, 4096])
def test_the_pruned_inverse_agrees_at_the_wanted_coefficients(degree: int, stride: int) -> None:
    one = ring(degree, MODULI)
    largest = (one.moduli[:, None] - np.uint64(1) + np.zeros(degree, np.uint64)).astype(np.uint32)
    for original in [*uniform(one, stride, 4), largest]:
        full, lanes = original.copy(), one.to_lane_order(original)
        one.inverse(full)
        for i, row in enumerate(lanes):
            pruned = np.empty(degree // stride, np.uint32)
            inverse_lanes(row, pruned, stride, i, one.constants)
            np.testing.assert_array_equal(pruned, full[i, stride - 1 :: stride])


@quick
@given(DEGREES, SEEDS)
def test_lane_order_is_a_permutation_and_its_own_way_back(degree: int, seed: int) -> None:
    one = ring(degree, MODULI)
    original = uniform(one, seed, 2)
    lanes = one.to_lane_order(original)
    np.testing.assert_array_equal(one.to_seal_order(lanes), original)
    np.testing.assert_array_equal(np.sort(lanes), np.sort(original))


def test_the_lane_transform_is_the_transform_in_lane_order() -> None:
    one = ring(4096, MODULI)
    original = uniform(one, 1)
    expected = original.copy()
    one.forward(expected)
    for i, row in enumerate(original):
        lanes = np.empty(4096, np.uint32)
        forward_lanes(row, lanes, i, one.constants)
        np.testing.assert_array_equal(lanes, one.to_lane_order(expected)[i])


def test_one_ring_is_made_once() -> None:
    assert ring(4096, PRIVATE.data_moduli) is ring(4096, PRIVATE.data_moduli)
    rings = [ring(degree, MODULI) for degree in (8, 16, 32)]
    assert all(a is not b for a, b in pairwise(rings))
