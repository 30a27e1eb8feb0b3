"""Whose masked vector arrived: the list that is unmasked, and the signatures that it takes.

The consistency check of the paper's figure 4. For each participant either its seed is revealed
(it is in the list) or its mask key (it is not), never both. A coordinator that showed different
lists could get both; so an institution agrees to one list in a session, and reveals anything only
when more than the threshold have agreed to the same.

A list from which nobody is missing needs no signatures: to reveal for it is to agree to it. Say
that t reveal or sign for each of two lists. Honest ones do so for one list alone, so the t - c
honest ones of each are different ones and 2 (t - c) <= n - c, against 2 t > n + c.
"""

from collections.abc import Collection, Iterable

from protocol.errors import MalformedMessage
from protocol.identity import Identity
from protocol.roster import Roster
from protocol.secure_aggregation.fields import join_fields, join_names, split_fields
from protocol.secure_aggregation.roll import Roll
from protocol.secure_aggregation.session import MAX_PARTICIPANTS

_PURPOSE = "secure-aggregation/survivors"


def sign_survivors(identity: Identity, circle: bytes, survivors: Iterable[str]) -> bytes:
    """Agree to this list; ``circle`` names session, participants and who dealt shares."""
    return identity.sign(_PURPOSE, _signed(circle, survivors))


def join_signatures(signatures: Iterable[tuple[str, bytes]]) -> bytes:
    """Names and signatures in one byte string."""
    return join_fields(part for name, said in signatures for part in (name.encode(), said))


def check_agreement(
    content: object, roll: Roll, roster: Roster, circle: bytes, survivors: Collection[str]
) -> None:
    """Raise MalformedMessage unless enough of ``survivors`` signed exactly this list."""
    fields = split_fields(content, "agreement", range(2 * MAX_PARTICIPANTS + 1), 104)
    agreed: set[str] = set()
    for name, signature in zip(fields[::2], fields[1::2], strict=False):
        signer = name.decode("ascii", "replace")
        if signer in survivors and agrees(signer, signature, roster, circle, survivors):
            agreed.add(signer)
    if len(agreed) < roll.threshold:
        raise MalformedMessage(
            f"survivors: {len(agreed)} institutions agreed to this list, expected at least "
            f"{roll.threshold} of {len(roll.shown)}"
        )


def agrees(
    name: str, signature: bytes, roster: Roster, circle: bytes, survivors: Iterable[str]
) -> bool:
    """Whether ``name``, an institution of the roster, signed this list."""
    member = roster.named(name)
    if member is None or member.role != "institution":
        return False
    return member.identity.verifies(_PURPOSE, _signed(circle, survivors), signature)


def _signed(circle: bytes, survivors: Iterable[str]) -> bytes:
    return join_fields([circle, join_names(survivors)])
