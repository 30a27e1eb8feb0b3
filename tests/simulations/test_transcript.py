"""What the coordinator sees does not determine an institution's update, however it lies.

The claim: for any two assignments of updates with the same sum over the survivors, the transcript
of a session has the same distribution. The proof, which the test carries out: let the expansions
of keys that the coordinator cannot compute be uniform (AES in counter mode under keys from X25519
and HKDF, or from seeds of which fewer shares than the threshold were revealed). Given a run with
one assignment, there is a shift of those expansions under which a run with the other assignment,
with all other randomness the same, gives the *identical* transcript: every advertisement, parcel,
signature, masked vector and revealed share, byte for byte. Shifting is a bijection of uniform
vectors, so the two distributions are one.

The keys that the coordinator can compute are not assumed: the test takes the strongest attack on
what was revealed. Where masks are taken away the shift does not exist, and the same test fails.
"""

import hashlib
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from protocol.errors import MalformedMessage
from protocol.secure_aggregation import masks
from protocol.secure_aggregation.contribution import Contribution, highest, quantise
from protocol.secure_aggregation.masks import pair_key, pair_sign, self_key
from protocol.secure_aggregation.shamir import combine
from tests.simulations.masked_parties import NAMES, SESSION, Parties

Vector = np.ndarray


@dataclass
class Ideal:
    """Expansions of keys as a random table, shifted for some keys; kinds can be taken away."""

    shifts: dict[bytes, Vector] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    kinds: dict[bytes, str] = field(default_factory=dict)

    def add(self, words: Vector, key: bytes, stream: int, sign: int) -> None:
        if self.kinds.get(key) in self.without:
            return
        seed = np.frombuffer(hashlib.sha256(key + bytes([stream])).digest(), np.uint32)
        drawn = np.random.default_rng(seed).integers(0, 2**32, words.size, np.uint64)
        mask = drawn.astype(words.dtype)
        if stream == 0 and key in self.shifts:
            mask += self.shifts[key]
        words += mask if sign == 1 else (~mask + words.dtype.type(1))


@dataclass
class View:
    """Everything that the coordinator ever saw, and what it can make of it."""

    parties: Parties
    seen: list[bytes]
    delivered: tuple[str, ...]
    unknown_self: dict[str, bytes]
    unknown_pairs: dict[tuple[str, str], bytes]


@contextmanager
def _expanding(ideal: Ideal) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masks, "add_keystream", ideal.add)
        yield


def _play(values: dict[str, Vector], dropped: str, late: str, ideal: Ideal) -> View:
    """A session in which ``dropped`` never deliver, and ``late`` do after they were given up."""
    parties = Parties()
    parties.keys()
    parties.share()
    roll, circle = parties.coordinator.roll, parties.coordinator.roll.circle(NAMES)
    secrets = {name: one._keys() for name, one in parties.institutions.items()}
    own = {name: self_key(keys.seed, circle, name) for name, keys in secrets.items()}
    pairs = {
        (a, b): pair_key(secrets[a].mask, roll.find(b).mask_key, circle, a, b)
        for a, b in itertools.combinations(NAMES, 2)
    }
    ideal.kinds = dict.fromkeys(own.values(), "self") | dict.fromkeys(pairs.values(), "pair")
    delivered = tuple(name for name in NAMES if name not in dropped)
    with _expanding(ideal):
        parties.vectors({name: values[name] for name in delivered}, late)
        parties.agree()
        parties.reveal()
    known = _attack(parties)
    unknown_self = {n: k for n, k in own.items() if k not in known and "self" not in ideal.without}
    unknown_pairs = {
        n: k for n, k in pairs.items() if k not in known and "pair" not in ideal.without
    }
    return View(parties, parties.seen, delivered, unknown_self, unknown_pairs)


def _attack(parties: Parties) -> set[bytes]:
    """Every key that follows from revealed shares, whatever secret they are of."""
    coordinator = parties.coordinator
    roll, circle = coordinator.roll, coordinator.roll.circle(NAMES)
    known: set[bytes] = set()
    for name in NAMES:
        held = {roll.point(h): shares[name] for h, shares in coordinator._revealed.items()}
        for chosen in itertools.combinations(sorted(held), min(roll.threshold, len(held))):
            try:
                secret = combine({point: held[point] for point in chosen})
            except MalformedMessage:
                continue
            known.add(self_key(secret, circle, name))
            for other in NAMES:
                if other != name:
                    public = roll.find(other).mask_key
                    known.add(pair_key(secret, public, circle, name, other))
    return known


def _words(values: Vector) -> Vector:
    given = Contribution(np.asarray(values, np.float32), np.zeros(1), 100)
    return quantise(given, SESSION, len(NAMES))[0].update


def _explain(
    view: View, before: dict[str, Vector], after: dict[str, Vector]
) -> dict[bytes, Vector] | None:
    """Shifts of unknown masks under which ``after`` looks like ``before``; None if there are none.

    For each vector that was delivered: its change, plus the shift of its own mask, plus those of
    its pairwise masks with their signs, is zero. One's own unknown mask takes up anything; else a
    change is handed along a tree of unknown pairwise masks, and at its root nothing may be left.
    """
    change = {name: _words(after[name]) - _words(before[name]) for name in view.delivered}
    shifts: dict[bytes, Vector] = {}
    for name, key in view.unknown_self.items():
        if name in change:
            shifts[key] = ~change[name] + np.uint32(1)
            change[name] = np.zeros_like(change[name])
    left = set(change)
    while left:
        order, parents = [min(left)], {}
        for one in order:  # a tree of those who share a mask that is not known
            for other in sorted(left - set(order)):
                pair = (min(one, other), max(one, other))
                if pair in view.unknown_pairs:
                    parents[other] = one, view.unknown_pairs[pair]
                    order.append(other)
        for one in reversed(order[1:]):
            parent, key = parents[one]
            shift = ~change[one] + np.uint32(1)
            shifts[key] = shift if pair_sign(one, parent) == 1 else ~shift + np.uint32(1)
            change[parent] += change[one]
        if change[order[0]].any():
            return None
        left -= set(order)
    return shifts


def _same_transcript(
    before: dict[str, Vector], after: dict[str, Vector], dropped: str, late: str, without: str = ""
) -> bool:
    removed = frozenset([without]) if without else frozenset()
    view = _play(before, dropped, late, Ideal(without=removed))
    shifts = _explain(view, before, after)
    if shifts is None:
        return False
    again = _play(after, dropped, late, Ideal(shifts, removed))
    assert again.unknown_self == view.unknown_self and again.unknown_pairs == view.unknown_pairs
    return again.seen == view.seen


STEP = 2.0 / highest(32, len(NAMES))
BEFORE = {name: np.array([i, -2 * i, 7], float) * 2**20 * STEP for i, name in enumerate(NAMES)}


def _moved(**moves: int) -> dict[str, Vector]:
    """The updates, some of them moved by whole steps."""
    return {name: v + moves.get(name, 0) * 2**20 * STEP for name, v in BEFORE.items()}


@pytest.mark.parametrize(
    ("dropped", "late", "moves"),
    [
        ("", "", {"a": 5, "b": -5}),
        ("d", "", {"a": 5, "b": -7, "e": 2}),  # with a drop-out
        ("d", "", {"d": 99, "b": 1, "c": -1}),
        ("", "d", {"d": 99}),  # delivered, and said to have dropped out: it may be anything
        ("", "d", {"d": 99, "a": -3, "e": 3}),
    ],
)
def test_any_updates_with_the_same_sum_give_the_same_transcript(
    dropped: str, late: str, moves: dict[str, int]
) -> None:
    assert _same_transcript(BEFORE, _moved(**moves), dropped, late)


def test_the_sum_itself_is_determined() -> None:
    """The test can fail: updates with another sum do not give the same transcript."""
    assert not _same_transcript(BEFORE, _moved(a=5, b=-4), "", "")
    assert not _same_transcript(BEFORE, _moved(a=5), "d", "")


def test_without_its_own_mask_a_delivered_update_is_determined() -> None:
    """The coordinator says that d dropped out, is given its mask key, and has its vector."""
    moved = _moved(d=99)
    assert not _same_transcript(BEFORE, moved, "", "d", without="self")
    assert _same_transcript(BEFORE, _moved(a=1, b=-1), "", "d", without="self")  # d alone


def test_without_pairwise_masks_each_update_is_determined() -> None:
    assert not _same_transcript(BEFORE, _moved(a=5, b=-5), "", "", without="pair")
    assert not _same_transcript(BEFORE, _moved(a=5, b=-5), "d", "", without="pair")
