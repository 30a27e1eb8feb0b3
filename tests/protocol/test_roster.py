"""The roster: believed as the authority signed it, or not at all."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import BlindsightError, MalformedMessage, UsageError
from protocol.identity import Identity
from protocol.roster import _PURPOSE, MAX_BYTES, MAX_MEMBERS, Member, Roster, _canonical, check_name

AUTHORITY, OTHER = Identity.ephemeral(), Identity.ephemeral()
CLINIC, MUSEUM, BOB = (Identity.ephemeral().public for _ in range(3))
ROSTER = Roster(
    "lab",
    7,
    (
        Member("museum", "institution", MUSEUM),
        Member("bob", "searcher", BOB),
        Member("clinic", "institution", CLINIC),
    ),
)
SIGNED = ROSTER.to_json(AUTHORITY)


def signed(content: dict[str, Any]) -> bytes:
    """Whatever ``content`` is, signed by the authority."""
    signature = AUTHORITY.sign(_PURPOSE, _canonical(content)).hex()
    return json.dumps(content | {"signature": signature}).encode()


def content() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(SIGNED)
    del found["signature"]
    return found


def test_what_was_written_is_read(tmp_path: Path) -> None:
    ROSTER.write(tmp_path / "roster.json", AUTHORITY)
    found = Roster.read(tmp_path / "roster.json", AUTHORITY.public)
    assert found.members == tuple(sorted(ROSTER.members, key=lambda one: one.name))
    assert (found.federation, found.serial) == ("lab", 7)
    assert [one.name for one in found.of_role("institution")] == ["clinic", "museum"]
    clinic = found.find(CLINIC)
    assert clinic is not None and clinic == found.named("clinic") and clinic.role == "institution"
    assert found.find(OTHER.public) is None and found.named("nobody") is None


def test_another_authority_is_not_believed() -> None:
    with pytest.raises(MalformedMessage, match="did not sign"):
        Roster.from_json(SIGNED, OTHER.public)


def without_a_member(found: dict[str, Any]) -> None:
    del found["members"][0]


def with_another_key(found: dict[str, Any]) -> None:
    found["members"][0]["public_key"] = OTHER.public.der.hex()


def with_another_role(found: dict[str, Any]) -> None:
    found["members"][0]["role"] = "institution"


def with_another_serial(found: dict[str, Any]) -> None:
    found["serial"] += 1


def of_another_federation(found: dict[str, Any]) -> None:
    found["federation"] = "lac"


CHANGES = [
    without_a_member, with_another_key, with_another_role, with_another_serial,
    of_another_federation,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_roster_is_not_believed(change: Any) -> None:
    found = json.loads(SIGNED)
    change(found)
    with pytest.raises(MalformedMessage, match="did not sign"):
        Roster.from_json(json.dumps(found).encode(), AUTHORITY.public)


def test_the_same_roster_in_another_dress_is_the_same() -> None:
    found = json.loads(SIGNED)
    again = json.dumps(dict(reversed(found.items())), indent=7).encode()
    assert Roster.from_json(again, AUTHORITY.public).serial == 7


def odd(**changes: Any) -> dict[str, Any]:
    return content() | changes


TWICE = [*content()["members"], content()["members"][0]]


@pytest.mark.parametrize(
    "found",
    [
        odd(extra=1),
        odd(format=2),
        odd(members=TWICE),
        odd(members=list(reversed(content()["members"]))),
        odd(members=[{**TWICE[0], "role": "king"}]),
        odd(members=[{**TWICE[0], "name": "../x"}]),
        odd(members=[{**TWICE[0], "extra": 1}]),
        odd(members=[{**TWICE[0], "public_key": "00" * 120}]),
        odd(members=[1]),
        odd(members={}),
        {},
    ],
    ids=range(11),
)
def test_even_the_authority_signs_one_form_alone(found: dict[str, Any]) -> None:
    with pytest.raises(BlindsightError):
        Roster.from_json(signed(found), AUTHORITY.public)


def test_a_roster_that_is_too_large_is_not_parsed() -> None:
    with pytest.raises(MalformedMessage, match="at most"):
        Roster.from_json(b"[" * (MAX_BYTES + 1), AUTHORITY.public)
    members = [{**TWICE[0], "name": f"m{i}"} for i in range(MAX_MEMBERS + 2)]
    with pytest.raises(MalformedMessage):
        Roster.from_json(signed(odd(members=members)), AUTHORITY.public)


@settings(deadline=None, max_examples=100)
@given(st.integers(0, len(SIGNED) - 1), st.integers(1, 255))
def test_no_changed_byte_changes_what_is_believed(at: int, change: int) -> None:
    changed = bytearray(SIGNED)
    changed[at] ^= change
    try:
        found = Roster.from_json(bytes(changed), AUTHORITY.public)
    except BlindsightError:
        return
    # Space between values, or the case of a hexadecimal digit of the signature.
    assert found == Roster.from_json(SIGNED, AUTHORITY.public)


def test_a_missing_roster_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"roster\.json"):
        Roster.read(tmp_path / "roster.json", AUTHORITY.public)


@pytest.mark.parametrize("name", ["a", "clinic-3", "0", "a" * 63, "a-"])
def test_names_that_are_taken(name: str) -> None:
    assert check_name(name) == name


TRICKS = [
    "",
    "-a",
    "a" * 64,
    "A",
    "a b",
    "a/b",
    "..",
    "a\n",
    "é",
    "\u0430",
    "a\0",
    "a.b",
    "a_b",
    None,
    3,
]


@pytest.mark.parametrize("name", TRICKS, ids=repr)
def test_names_that_are_tricks(name: object) -> None:
    with pytest.raises(UsageError, match="no name"):
        check_name(name)
