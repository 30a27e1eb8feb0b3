"""Secret sharing, quantisation, masks and the strict reading of every message."""

import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import MalformedMessage
from protocol.identity import Identity
from protocol.secure_aggregation.contribution import (
    TOTAL_STEP,
    Contribution,
    dequantise,
    highest,
    quantise,
    update_step,
)
from protocol.secure_aggregation.fields import join_fields, join_names, read_names, split_fields
from protocol.secure_aggregation.keys import Advertisement, EphemeralKeys, agree, public_key
from protocol.secure_aggregation.masks import Masked, add_keystream, pair_key, pair_sign
from protocol.secure_aggregation.parcels import read_parcels
from protocol.secure_aggregation.revealed import read_revealed
from protocol.secure_aggregation.roll import Roll
from protocol.secure_aggregation.session import Session
from protocol.secure_aggregation.shamir import PRIME, combine, read_share, split

SESSION = Session("lab", "0" * 32, "train", 1, 2 / 3, 2.0, 10_000)
SECRETS = st.binary(min_size=32, max_size=32)


def test_the_field_is_one() -> None:
    """Miller and Rabin's test with 40 bases."""
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for _ in range(40):
        power = pow(random.randrange(2, PRIME - 1), odd, PRIME)
        powers = [pow(power, 2**i, PRIME) for i in range(twos)]
        assert power == 1 or PRIME - 1 in powers


@given(SECRETS, st.data())
def test_any_threshold_shares_give_the_secret_and_one_less_gives_nothing(
    secret: bytes, data: st.DataObject
) -> None:
    count = data.draw(st.integers(2, 9))
    threshold = data.draw(st.integers(2, count))
    shares = dict(enumerate(split(secret, threshold, count, os.urandom), start=1))
    chosen = data.draw(st.permutations(sorted(shares)))
    assert combine({point: shares[point] for point in chosen[:threshold]}) == secret
    # Whatever the secret, one share more would make these fit it: they say nothing.
    fewer = {point: shares[point] for point in chosen[: threshold - 1]}
    other = data.draw(SECRETS)
    values = {0: int.from_bytes(other, "big")} | {p: read_share(s) for p, s in fewer.items()}
    missing = chosen[threshold - 1]
    fitting = 0
    for point, value in values.items():
        weight = value
        for another in values:
            if another != point:
                weight = weight * (missing - another) * pow(point - another, -1, PRIME) % PRIME
        fitting = (fitting + weight) % PRIME
    assert combine(fewer | {missing: fitting.to_bytes(33, "big")}) == other


def test_shares_that_are_none_are_refused() -> None:
    for wrong in (b"", b"\xff" * 33, bytes(32), PRIME.to_bytes(33, "big")):
        with pytest.raises(MalformedMessage, match="share"):
            combine({1: wrong, 2: bytes(33)})
    for threshold in (0, 4):
        with pytest.raises(ValueError, match="shares"):
            split(bytes(32), threshold, 3, os.urandom)


@settings(max_examples=60)
@given(
    st.integers(1, 1000),
    st.integers(1, 10_000),
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=20),
)
def test_sums_of_the_largest_number_of_institutions_are_exact_to_the_step(
    participants: int, weight: int, values: list[float]
) -> None:
    """All at the ends of the range at once: nothing overflows."""
    update = np.array(values, np.float32)
    totals = np.array([weight, 0.5, 1e300, -1e300])
    words, clipped = quantise(Contribution(update, totals, weight), SESSION, participants)
    assert clipped == np.count_nonzero(np.abs(update) > 2) + 2
    summed = Masked(words.update.copy(), words.totals.copy())
    for _ in range(participants - 1):
        summed += words
    found = dequantise(summed, SESSION, participants)
    exact = participants * np.clip(update.astype(float), -2, 2) * weight / 10_000
    step = update_step(SESSION, participants)
    np.testing.assert_allclose(found.update, exact, atol=participants * step * 0.5000001, rtol=0)
    assert found.totals[0] == participants * weight
    assert found.totals[1] == participants * 0.5
    assert found.totals[2] > 0.99 * participants * highest(64, participants) * TOTAL_STEP > 0
    assert found.totals[3] == -found.totals[2]


def test_what_cannot_be_summed_is_refused() -> None:
    zeros = np.zeros(2, np.float32)
    for given_ in (
        Contribution(zeros, np.zeros(1), 0),
        Contribution(zeros, np.zeros(1), 10_001),
        Contribution(zeros, np.array([np.nan])),
        Contribution(np.array([np.nan], np.float32), np.zeros(1)),
    ):
        with pytest.raises(ValueError, match="expected"):
            quantise(given_, SESSION, 3)
    for participants in (0, 1001):
        with pytest.raises(ValueError, match="participants"):
            highest(32, participants)


@pytest.mark.parametrize("size", [0, 1, 3, 65_536, 65_537, 200_001])
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_masks_are_a_keystream_and_cancel(size: int, dtype: type) -> None:
    key = os.urandom(32)
    words = np.arange(size).astype(dtype)
    masked = words.copy()
    add_keystream(masked, key, 0, 1)
    if size > 2:
        stream = masked - words
        assert len(np.unique(stream)) > 0.999 * size  # no block is used twice
        half = stream[: size // 2].copy()
        add_keystream(half, key, 0, -1)
        assert not half.any()  # a shorter vector has the beginning of the same stream
        other = words.copy()
        add_keystream(other, key, 1, 1)
        assert (other != masked).any()
    add_keystream(masked, key, 0, -1)
    np.testing.assert_array_equal(masked, words)


def test_a_pair_reckons_one_mask_with_opposite_signs() -> None:
    ours, theirs = os.urandom(32), os.urandom(32)
    here = pair_key(ours, public_key(theirs), b"circle", "a", "b")
    assert here == pair_key(theirs, public_key(ours), b"circle", "b", "a")
    assert here != pair_key(theirs, public_key(ours), b"another", "b", "a")
    assert pair_sign("a", "b") == -pair_sign("b", "a")
    with pytest.raises(MalformedMessage, match="small order"):
        agree(ours, bytes(32), b"")


@pytest.mark.parametrize(
    ("participants", "least"),
    [(2, 2), (3, 3), (4, 3), (5, 4), (6, 5), (9, 7), (300, 201), (999, 667), (1000, 667)],
)
def test_more_than_two_thirds_unmask_by_default(participants: int, least: int) -> None:
    assert SESSION.least(participants) == least


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=5))
def test_fields_come_back_as_they_were(fields: list[bytes]) -> None:
    assert split_fields(join_fields(fields), "x", range(1, 6), 40) == fields


_READERS = [
    lambda content: split_fields(content, "x", range(1, 3), 8),
    lambda content: read_names(content, "x", 5),
    Advertisement.read,
    read_parcels,
    lambda content: read_revealed(content, ("a", "b")),
    lambda content: Roll.read(SESSION, content),
]


@pytest.mark.parametrize("read", _READERS)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.lists(st.binary(max_size=120), max_size=6).map(join_fields),
        st.lists(st.lists(st.binary(max_size=40), max_size=6).map(join_fields), max_size=4).map(
            join_fields
        ),
        st.sampled_from([None, 3, "text", [b""]]),
    )
)
def test_any_foreign_bytes_are_read_or_refused(read: object, content: object) -> None:
    try:
        read(content)  # type: ignore[operator]
    except MalformedMessage as error:
        assert error.message


def test_names_are_ascending_and_none_is_twice() -> None:
    assert read_names(join_names(["b", "a"]), "x", 2) == ("a", "b")
    for wrong in ([b"b", b"a"], [b"a", b"a"], [b"\xff"], []):
        with pytest.raises(MalformedMessage):
            read_names(join_fields(wrong), "x", 5)


def test_an_advertisement_is_bound_to_its_session() -> None:
    identity, keys = Identity.ephemeral(), EphemeralKeys.create(os.urandom)
    shown = Advertisement.read(keys.advertise(SESSION, identity, "clinic", True).to_bytes())
    assert shown.signed_by(identity.public, SESSION) and shown.equal
    for change in (
        {"number": 2},
        {"run": "1" * 32},
        {"purpose": "evaluate"},
        {"threshold": 0.5},
        {"clipping_range": 3.0},
        {"federation": "other"},
    ):
        values = {name: getattr(SESSION, name) for name in SESSION.__slots__} | change
        assert not shown.signed_by(identity.public, Session(**values))
    with pytest.raises(TypeError):
        keys.__reduce_ex__(2)
    assert keys.mask.hex() not in repr(keys) and str(keys.mask) not in repr(keys)


@pytest.mark.parametrize(
    "change",
    [
        {"run": "x"},
        {"purpose": "search"},
        {"number": -1},
        {"number": True},
        {"threshold": 0.4},
        {"threshold": float("nan")},
        {"clipping_range": float("inf")},
        {"max_weight": 0},
    ],
)
def test_a_session_out_of_range_is_none(change: dict[str, object]) -> None:
    values = {name: getattr(SESSION, name) for name in SESSION.__slots__} | change
    with pytest.raises(MalformedMessage):
        Session(**values)  # type: ignore[arg-type]
