"""Residues as bit strings: every valid one comes back, every other one is refused."""

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.bits import pack, packed_bytes, unpack
from protocol.errors import MalformedMessage
from protocol.params import PRIVATE

MODULI = st.integers(2, 27).flatmap(lambda bits: st.integers(2 ** (bits - 1), 2**bits - 1))
quick = settings(deadline=None)


@st.composite
def residues_of_a_modulus(draw: st.DrawFn) -> tuple[NDArray[np.uint32], int]:
    modulus = draw(MODULI)
    residue = st.integers(0, modulus - 1) | st.sampled_from([0, modulus - 1])
    return np.array(draw(st.lists(residue, max_size=70)), np.uint32), modulus


def as_one_number(residues: NDArray[np.uint32], modulus: int) -> bytes:
    """The definition: residue i times 2^(i*width), summed, as one little-endian number."""
    width = (modulus - 1).bit_length()
    number = sum(int(residue) << i * width for i, residue in enumerate(residues))
    return number.to_bytes(-(-len(residues) * width // 8), "little")


# --- what is packed


@quick
@given(residues_of_a_modulus())
def test_packed_residues_are_one_little_endian_number(
    drawn: tuple[NDArray[np.uint32], int],
) -> None:
    residues, modulus = drawn
    packed = pack(residues, modulus)
    assert packed == as_one_number(residues, modulus)
    assert len(packed) == packed_bytes(len(residues), modulus)


@quick
@given(residues_of_a_modulus())
def test_round_trip(drawn: tuple[NDArray[np.uint32], int]) -> None:
    residues, modulus = drawn
    back = unpack(pack(residues, modulus), len(residues), modulus)
    assert back.dtype == np.uint32
    np.testing.assert_array_equal(back, residues)


@pytest.mark.parametrize("modulus", PRIVATE.moduli)
def test_round_trip_of_a_whole_polynomial(modulus: int) -> None:
    residues = np.random.default_rng(0).integers(0, modulus, 4096).astype(np.uint32)
    residues[[0, -1]] = 0, modulus - 1
    packed = pack(residues, modulus)
    assert len(packed) == 4096 * (modulus - 1).bit_length() // 8
    np.testing.assert_array_equal(unpack(packed, 4096, modulus), residues)


def test_by_hand() -> None:
    # Five bits each: 3 = 00011, 17 = 10001, 30 = 11110. From the right, without a gap:
    # 0 11110 10001 00011 = 0111 1010 0010 0011 = 0x7a23, the lower byte first.
    assert pack(np.array([3, 17, 30], np.uint32), 31) == b"\x23\x7a"
    assert unpack(b"\x23\x7a", 3, 31).tolist() == [3, 17, 30]


@pytest.mark.parametrize(
    ("count", "modulus", "length"),
    [(0, 5, 0), (1, 2, 1), (4, 3, 1), (5, 3, 2), (8, 2**27 - 1, 27), (1, 2**26, 4), (3, 8, 2)],
)
def test_lengths_are_exact(count: int, modulus: int, length: int) -> None:
    assert packed_bytes(count, modulus) == length
    assert len(pack(np.zeros(count, np.uint32), modulus)) == length


def test_an_array_is_packed_in_c_order_whatever_its_memory_is() -> None:
    grid = np.arange(12, dtype=np.uint32).reshape(3, 4)
    flat = pack(np.arange(12, dtype=np.uint32), 13)
    assert pack(grid, 13) == flat
    assert pack(np.asfortranarray(grid), 13) == flat
    assert pack(np.arange(24, dtype=np.uint32)[::2] // 2, 13) == flat


# --- what is refused


@quick
@given(residues_of_a_modulus(), st.binary(min_size=1, max_size=4), st.integers(1, 300))
def test_another_length_is_refused(
    drawn: tuple[NDArray[np.uint32], int], more: bytes, less: int
) -> None:
    residues, modulus = drawn
    packed = pack(residues, modulus)
    with pytest.raises(MalformedMessage, match=f"{len(packed)} bytes, got {len(packed + more)}"):
        unpack(packed + more, len(residues), modulus)
    if packed:
        with pytest.raises(MalformedMessage, match="bytes, got"):
            unpack(packed[:-less], len(residues), modulus)


@quick
@given(residues_of_a_modulus(), st.data())
def test_a_residue_out_of_range_is_refused(
    drawn: tuple[NDArray[np.uint32], int], data: st.DataObject
) -> None:
    residues, modulus = drawn
    assume(modulus & (modulus - 1))  # every word of a power of two is in range
    place = data.draw(st.integers(0, len(residues)))
    largest = 2 ** (modulus - 1).bit_length() - 1
    wrong = np.insert(residues, place, data.draw(st.integers(modulus, largest)))
    with pytest.raises(MalformedMessage, match=f"below {modulus}"):
        unpack(as_one_number(wrong, modulus), len(wrong), modulus)


@quick
@given(residues_of_a_modulus(), st.data())
def test_set_padding_is_refused(drawn: tuple[NDArray[np.uint32], int], data: st.DataObject) -> None:
    residues, modulus = drawn
    used = len(residues) * (modulus - 1).bit_length()
    assume(used % 8)
    packed = bytearray(pack(residues, modulus))
    bit = data.draw(st.integers(used % 8, 7))
    packed[-1] |= 1 << bit
    with pytest.raises(MalformedMessage, match="zero"):
        unpack(bytes(packed), len(residues), modulus)


@quick
@given(st.binary(max_size=100), st.integers(0, 200), MODULI)
@example(b"", 0, 2)
@example(b"\xff", 2**32 - 1, 2**27 - 1)
def test_arbitrary_bytes_give_residues_or_are_refused(
    data: bytes, count: int, modulus: int
) -> None:
    try:
        residues = unpack(data, count, modulus)
    except MalformedMessage as error:
        assert len(error.message) < 200
        return
    assert len(residues) == count
    assert (residues < modulus).all()
    assert pack(residues, modulus) == data


@quick
@given(residues_of_a_modulus(), st.data())
def test_a_flipped_bit_never_passes_for_the_original(
    drawn: tuple[NDArray[np.uint32], int], data: st.DataObject
) -> None:
    residues, modulus = np.append(drawn[0], np.uint32(0)), drawn[1]
    packed = bytearray(pack(residues, modulus))
    bit = data.draw(st.integers(0, 8 * len(packed) - 1))
    packed[bit // 8] ^= 1 << bit % 8
    try:
        other = unpack(bytes(packed), len(residues), modulus)
    except MalformedMessage:
        return
    assert np.count_nonzero(other != residues) == 1
