"""Secure aggregation between parties that cheat: what is refused, who is named, what is summed."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.institution.unmasked import Unmasked
from protocol.errors import MalformedMessage, StorageError, UsageError
from protocol.roster import Member, Roster
from protocol.secure_aggregation.contribution import update_step
from protocol.secure_aggregation.fields import join_fields, join_names
from protocol.secure_aggregation.keys import (
    Advertisement,
    EphemeralKeys,
    commit_seed,
    public_key,
)
from protocol.secure_aggregation.masks import Masked
from protocol.secure_aggregation.parcels import join_parcels, read_parcels
from protocol.secure_aggregation.revealed import join_revealed, read_revealed
from protocol.secure_aggregation.shamir import combine
from protocol.secure_aggregation.survivors import join_signatures
from server.unmasking import Unmasking
from tests.simulations.masked_parties import IDENTITIES, NAMES, ROSTER, SESSION, Parties, masking

VALUES: dict[str, object] = {name: [i / 8, -i / 4, 0.1 * i] for i, name in enumerate(NAMES)}


def _exact(names: str) -> np.ndarray:
    return sum(np.asarray(VALUES[name], np.float32).astype(float) for name in names)  # type: ignore[return-value]


def _expect(parties: Parties, names: str) -> None:
    found = parties.coordinator.unmask()
    # Half a step for each.
    step = update_step(SESSION, len(parties.coordinator.roll.shown))
    np.testing.assert_allclose(found.update, _exact(names), atol=len(names) * step / 2, rtol=0)
    assert found.totals[0] == 100 * len(names)


@pytest.mark.parametrize(
    ("came", "late"), [("abcde", ""), ("abce", ""), ("abcde", "b"), ("bcde", "")]
)
def test_the_sum_is_that_of_the_survivors_to_the_step(came: str, late: str) -> None:
    parties = Parties()
    parties.run({name: VALUES[name] for name in came}, late)
    _expect(parties, "".join(name for name in came if name not in late))
    for one in parties.institutions.values():
        if one.member.name in came and one.member.name not in late:
            assert set(one.state) == {"unmasked"}  # no secret outlives the session


def test_who_drops_out_before_its_shares_are_there_is_not_missed() -> None:
    parties = Parties()
    parties.keys()
    parties.share(silent="d")
    parties.vectors({name: VALUES[name] for name in "abce"})
    assert parties.coordinator.complete
    parties.reveal()
    _expect(parties, "abce")


def test_own_secrets_are_gone_as_soon_as_the_vector_is_masked() -> None:
    parties = Parties()
    parties.keys()
    parties.share()
    keys = parties.institutions["a"].state["keys"]
    parties.vector("a", VALUES["a"])
    kept = b"".join(
        value for value in parties.institutions["a"].state.values() if isinstance(value, bytes)
    )
    assert all(keys[start : start + 32] not in kept for start in (0, 32, 64))


def test_a_sum_of_one_is_two_below_the_threshold() -> None:
    parties = Parties()
    parties.keys()
    parties.share()
    parties.vectors({name: VALUES[name] for name in "abc"})
    survivors, _ = parties.coordinator.closing()
    with pytest.raises(MalformedMessage, match="at least 4, got 3"):
        parties.institutions["a"].agree(SESSION, survivors)
    with pytest.raises(MalformedMessage, match="at least 4, got 3"):
        parties.institutions["a"].unmask(SESSION, survivors, b"")


def _masked(names: str = "abcde", late: str = "") -> Parties:
    parties = Parties()
    parties.keys()
    parties.share()
    parties.vectors({name: VALUES[name] for name in names}, late)
    return parties


def test_the_coordinator_that_lies_about_who_dropped_out_gets_one_secret_of_each() -> None:
    """It has everybody's vector, says to some that b is there and to others that it is not."""
    parties = _masked()
    every, without = join_names("abcde"), join_names("acde")
    a, c = parties.institutions["a"], parties.institutions["c"]
    shares = read_revealed(a.unmask(SESSION, every, b""), tuple("abcde"))
    assert len(shares) == 5
    with pytest.raises(MalformedMessage, match="not under way"):  # both, from one institution
        a.unmask(SESSION, without, b"")
    with pytest.raises(MalformedMessage, match="not under way"):
        a.agree(SESSION, without)
    signed = c.agree(SESSION, without)
    with pytest.raises(MalformedMessage, match="agreed to another list"):
        c.unmask(SESSION, every, b"")
    with pytest.raises(MalformedMessage, match="agreed to another list"):
        c.agree(SESSION, join_names("bcde"))
    # One signature is no agreement, nor is one that is there twice, or under another's name.
    for said in ([("c", signed)], [("c", signed)] * 4, [(name, signed) for name in "acde"]):
        with pytest.raises(MalformedMessage, match="1 institutions agreed"):
            c.unmask(SESSION, without, join_signatures(said))
    # Nobody is asked to leave itself out.
    with pytest.raises(MalformedMessage, match="or this one is not"):
        parties.institutions["b"].agree(SESSION, without)
    # a has revealed for all five: of those left, one too few can be won for the list without b.
    others = [("c", signed)]
    others += [(name, parties.institutions[name].agree(SESSION, without)) for name in "de"]
    with pytest.raises(MalformedMessage, match="3 institutions agreed"):
        c.unmask(SESSION, without, join_signatures(others))


def test_a_late_vector_stays_hidden_for_its_seed_is_never_revealed() -> None:
    parties = _masked(late="b")
    parties.agree()
    parties.reveal()
    keys = parties.coordinator.roll
    held = {n: s["b"] for n, s in parties.coordinator._revealed.items()}
    secret = combine({keys.point(name): share for name, share in list(held.items())[:4]})
    # What they give together is the key of the pairwise masks, and not the seed of b's own.
    assert public_key(secret) == keys.find("b").mask_key
    assert commit_seed(secret) != keys.find("b").commitment
    with pytest.raises(MalformedMessage, match=r"not asked for|twice"):
        parties.coordinator.take_masked("a", Masked(np.zeros(3, np.uint32), np.zeros(1, np.uint64)))


def test_different_lists_of_participants_share_no_key() -> None:
    parties = Parties()
    parties.keys()
    shown = {one.name: one for one in parties.coordinator.roll.shown}
    for name, one in parties.institutions.items():
        names = "abcd" if name == "a" else "abcde"
        if name == "e":
            names = "bcde"
        listed = join_fields(shown[other].to_bytes() for other in names)
        parcels = read_parcels(one.share(SESSION, listed))
        parties.coordinator._parcels[name] = {parcel.receiver: parcel for parcel in parcels}
    mixed = join_parcels(parties.coordinator._parcels[s]["b"] for s in "acde")
    with pytest.raises(MalformedMessage, match=r"from a cannot be opened.*another list"):
        parties.institutions["b"].receive(SESSION, mixed)


def test_the_man_in_the_middle_cannot_sign() -> None:
    parties = Parties()
    parties.keys()
    shown = {one.name: one for one in parties.coordinator.roll.shown}
    own = EphemeralKeys.create(os.urandom)
    forged = own.advertise(SESSION, IDENTITIES["stranger"], "b", False)
    swapped = replace(shown["b"], mask_key=forged.mask_key)
    other_session = own.advertise(replace(SESSION, number=2), IDENTITIES["b"], "b", False)
    for wrong in (forged, swapped, other_session, replace(shown["b"], equal=True)):
        listed = join_fields(one.to_bytes() for one in (shown | {"b": wrong}).values())
        with pytest.raises(MalformedMessage, match="keys of b are not signed by it"):
            parties.institutions["a"].share(SESSION, listed)
        with pytest.raises(MalformedMessage, match="keys of b are not signed by it"):
            Parties().coordinator.take_keys(wrong.to_bytes())
    # Its own old keys, signed and all.
    old = parties.institutions["a"].state["shown"]
    parties.institutions["a"].advertise(SESSION, False)
    listed = join_fields(
        one.to_bytes() for one in (shown | {"a": Advertisement.read(old)}).values()
    )
    with pytest.raises(MalformedMessage, match="not the keys that this one showed"):
        parties.institutions["a"].share(SESSION, listed)


def test_a_sybil_and_one_who_was_revoked_are_refused_by_name() -> None:
    parties = Parties()
    roll = parties.keys()
    keys = EphemeralKeys.create(os.urandom)
    sybil = keys.advertise(SESSION, IDENTITIES["stranger"], "stranger", False).to_bytes()
    with pytest.raises(MalformedMessage, match="stranger is no institution"):
        parties.institutions["a"].share(SESSION, roll + join_fields([sybil]))
    with pytest.raises(MalformedMessage, match="stranger is no institution"):
        parties.coordinator.take_keys(sybil)
    # e was revoked, and only a has the newer roster: the coordinator is not asked.
    newer = Roster("lab", 2, tuple(one for one in ROSTER.members if one.name != "e"))
    with pytest.raises(MalformedMessage, match="e is no institution"):
        replace(parties.institutions["a"], roster=newer).share(SESSION, roll)
    roles = tuple(
        Member(one.name, "searcher" if one.name == "e" else one.role, one.identity)
        for one in ROSTER.members
    )
    with pytest.raises(MalformedMessage, match="e is no institution"):
        replace(parties.institutions["a"], roster=Roster("lab", 2, roles)).share(SESSION, roll)
    with pytest.raises(UsageError, match="not in its own roster"):
        masking("stranger").advertise(SESSION, False)
    with pytest.raises(MalformedMessage, match="expected lab"):
        masking("a").advertise(replace(SESSION, federation="bal"), False)


def test_too_few_participants_are_refused_by_the_institution_itself() -> None:
    parties = Parties("abc")
    roll = parties.keys()
    with pytest.raises(MalformedMessage, match="expected at least 4, got 3"):
        replace(parties.institutions["a"], minimum=4).share(SESSION, roll)
    alone = join_fields([parties.institutions["a"].state["shown"]])
    with pytest.raises(MalformedMessage, match="participants"):
        parties.institutions["a"].share(SESSION, alone)
    twice = join_fields([parties.institutions["a"].state["shown"]] * 2)
    with pytest.raises(MalformedMessage, match="twice"):
        parties.institutions["a"].share(SESSION, twice)


def test_nothing_is_done_twice_or_out_of_turn() -> None:
    parties = Parties()
    one = parties.institutions["a"]
    with pytest.raises(MalformedMessage, match="not under way"):
        one.share(SESSION, b"")
    roll = parties.keys()
    parties.share()
    with pytest.raises(MalformedMessage, match="not under way"):
        one.share(SESSION, roll)  # two polynomials would be two chances
    with pytest.raises(MalformedMessage, match="not under way"):
        one.unmask(SESSION, join_names("abcde"), b"")
    parties.vector("a", VALUES["a"])
    with pytest.raises(MalformedMessage, match="not under way"):
        parties.receive("a")
    with pytest.raises(MalformedMessage, match="not under way"):
        one.agree(replace(SESSION, number=2), join_names("abcd"))


def test_a_round_that_was_unmasked_is_not_played_again() -> None:
    parties = Parties()
    parties.run(VALUES)
    for number in (0, 1):
        with pytest.raises(MalformedMessage, match="none is unmasked twice"):
            parties.institutions["a"].advertise(replace(SESSION, number=number), False)
    following = parties.next()
    following.run(VALUES)
    assert {one.mask_key for one in following.coordinator.roll.shown}.isdisjoint(
        one.mask_key for one in parties.coordinator.roll.shown
    )
    # Another purpose and another run have numbers of their own.
    parties.institutions["a"].advertise(replace(SESSION, purpose="evaluate"), False)
    parties.institutions["a"].advertise(replace(SESSION, run="1" * 32), False)


def test_what_was_unmasked_outlives_the_process(tmp_path: Path) -> None:
    Unmasked({}, tmp_path).record(SESSION)
    Unmasked({}, tmp_path).require_new(replace(SESSION, number=2))
    with pytest.raises(MalformedMessage, match="is over here"):
        Unmasked({}, tmp_path).require_new(SESSION)
    for damaged in ("[]", "{", '{"a": "b"}', "[" * 100_000):
        (tmp_path / "unmasked.json").write_text(damaged)
        with pytest.raises(StorageError, match="damaged"):
            Unmasked({}, tmp_path).require_new(SESSION)


def _wrong_share(said: bytes, about: str) -> bytes:
    shares = read_revealed(said, tuple("abcde"))
    return join_revealed(shares | {about: bytes(33)})


def test_a_wrong_share_is_named_and_the_others_suffice() -> None:
    parties = _masked()
    survivors, agreement = parties.coordinator.closing()
    said = {
        name: one.unmask(SESSION, survivors, agreement)
        for name, one in parties.institutions.items()
    }
    with pytest.raises(MalformedMessage, match="share of b that it reveals is not what it holds"):
        parties.coordinator.take_revealed("a", _wrong_share(said["a"], "b"))
    with pytest.raises(MalformedMessage, match="expected one for each of 5"):
        parties.coordinator.take_revealed("a", said["a"] + join_fields([b"f", bytes(33)]))
    for name in "bcd":
        parties.coordinator.take_revealed(name, said[name])
    with pytest.raises(MalformedMessage, match="3 right shares of a, expected at least 4"):
        parties.coordinator.unmask()
    parties.coordinator.take_revealed("e", said["e"])
    _expect(parties, "abcde")


def test_a_dealer_whose_shares_are_of_no_secret_is_named() -> None:
    parties = Parties()
    parties.keys()
    keys = parties.institutions["b"].state["keys"]
    roll = parties.coordinator.roll.to_bytes()
    # It shares another seed than the one that it masks with and showed the hash of.
    parties.institutions["b"].state["keys"] = keys[:64] + bytes(32)
    dealt = parties.institutions["b"].share(SESSION, roll)
    parties.institutions["b"].state["keys"] = keys
    for name, one in parties.institutions.items():
        said = dealt if name == "b" else one.share(SESSION, roll)
        parties.coordinator.take_parcels(name, said)
    parties.vectors(VALUES)
    parties.reveal()
    with pytest.raises(MalformedMessage, match="b dealt shares that are of no secret"):
        parties.coordinator.unmask()


def test_parcels_that_were_changed_mixed_up_or_left_out_are_refused() -> None:
    parties = Parties()
    parties.keys()
    parties.share()
    good = read_parcels(parties.coordinator.parcels_for("a"))
    changed = replace(good[0], sealed=good[0].sealed[:-1] + bytes([good[0].sealed[-1] ^ 1]))
    lying = replace(good[0], commitments=bytes(64))
    from_c = replace(good[0], sender="c")
    for wrong, why in (
        ([changed, *good[1:]], "from b cannot be opened"),
        ([lying, *good[1:]], "from b are not what it shows"),
        ([from_c, *good[2:]], "from c cannot be opened"),
        ([good[0], *good], "twice"),
        (good[:1], "at least 4, got 2"),
        (read_parcels(parties.coordinator.parcels_for("b")), "for somebody else"),
    ):
        with pytest.raises(MalformedMessage, match=why):
            parties.institutions["a"].receive(SESSION, join_parcels(wrong))
    mine = [one for name in "bcde" for one in read_parcels(parties.coordinator.parcels_for(name))]
    mine = [one for one in mine if one.sender == "a"]
    fresh = Unmasking(SESSION, ROSTER)
    for one in parties.coordinator.roll.shown:
        fresh.take_keys(one.to_bytes())
    for wrong in (mine[:3], [*mine, mine[0]], [replace(one, sender="b") for one in mine]):
        with pytest.raises(MalformedMessage, match=r"one for each other|fields"):
            fresh.take_parcels("a", join_parcels(wrong))
