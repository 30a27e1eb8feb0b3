"""Who takes part in a session: the list that every institution checks for itself.

A party believes its own roster. Whoever is not in it as an institution is refused with the whole
list, for a coordinator that shows a stranger is not to be worked with. The list's hash goes into
every key that is derived: two institutions that were shown different lists share none.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from protocol.errors import MalformedMessage
from protocol.roster import Roster
from protocol.secure_aggregation.fields import join_fields, join_names, split_fields
from protocol.secure_aggregation.keys import Advertisement
from protocol.secure_aggregation.session import MAX_PARTICIPANTS, MIN_PARTICIPANTS, Session

_HINT = "compare the roster's fingerprints with the federation's authority"


@dataclass(frozen=True)
class Roll:
    """The advertisements of a session in order of name.

    Raises MalformedMessage for too few or too many, and for a name or a key that is there twice.
    """

    session: Session
    shown: tuple[Advertisement, ...]

    def __post_init__(self) -> None:
        count = len(self.shown)
        if not MIN_PARTICIPANTS <= count <= MAX_PARTICIPANTS:
            raise MalformedMessage(
                f"participants: expected {MIN_PARTICIPANTS} to {MAX_PARTICIPANTS}, got {count}"
            )
        keys = {key for one in self.shown for key in (one.mask_key, one.share_key, one.commitment)}
        if len(set(self.names)) < count or len(keys) < 3 * count:
            raise MalformedMessage("participants: a name or a key is there twice")

    @classmethod
    def of(cls, session: Session, shown: Iterable[Advertisement]) -> "Roll":
        """Those who showed something, in order."""
        return cls(session, tuple(sorted(shown, key=lambda one: one.name)))

    @classmethod
    def read(cls, session: Session, content: object) -> "Roll":
        """Foreign bytes, not yet verified. Raises MalformedMessage."""
        counts = range(MIN_PARTICIPANTS, MAX_PARTICIPANTS + 1)
        fields = split_fields(content, "participants", counts, 520)
        return cls.of(session, [Advertisement.read(field) for field in fields])

    def verify(self, roster: Roster) -> None:
        """Raise MalformedMessage that names the one whom ``roster`` does not vouch for."""
        for one in self.shown:
            verify(one, self.session, roster)

    def to_bytes(self) -> bytes:
        """Undone by ``read``."""
        return join_fields(one.to_bytes() for one in self.shown)

    @property
    def names(self) -> tuple[str, ...]:
        """Who takes part, ascending."""
        return tuple(one.name for one in self.shown)

    @property
    def threshold(self) -> int:
        """How many have to agree before anything is unmasked."""
        return self.session.least(len(self.shown))

    @property
    def equal(self) -> bool:
        """Whether all weigh the same, for somebody keeps its number of examples to itself."""
        return any(one.equal for one in self.shown)

    @cached_property
    def digest(self) -> bytes:
        """The hash of session and list. Signatures are no part of it: they can be varied."""
        content = join_fields([self.session.label, *(one.content for one in self.shown)])
        return hashlib.sha256(b"blindsight/1/secure-aggregation/roll\0" + content).digest()

    def find(self, name: str) -> Advertisement:
        """The advertisement of ``name``. Raises MalformedMessage for a stranger."""
        for one in self.shown:
            if one.name == name:
                return one
        raise MalformedMessage(f"{name!r:.80} takes no part in {self.session}")

    def point(self, name: str) -> int:
        """Where the shares of ``name`` lie: 1 to n."""
        return self.shown.index(self.find(name)) + 1

    def circle(self, names: Iterable[str]) -> bytes:
        """The hash of the list and of those who dealt shares: whom pairwise masks are made with."""
        content = join_fields([self.digest, join_names(names)])
        return hashlib.sha256(b"blindsight/1/secure-aggregation/circle\0" + content).digest()


def verify(shown: Advertisement, session: Session, roster: Roster) -> None:
    """Raise MalformedMessage unless an institution of ``roster`` showed it for ``session``."""
    member = roster.named(shown.name)
    if member is None or member.role != "institution":
        raise MalformedMessage(f"{shown.name} is no institution of this federation's roster", _HINT)
    if not shown.signed_by(member.identity, session):
        raise MalformedMessage(
            f"the keys of {shown.name} are not signed by it, for {session}", _HINT
        )
