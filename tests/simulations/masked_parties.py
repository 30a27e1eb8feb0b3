"""A coordinator and institutions that aggregate securely, without Flower between them."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from client.institution.masking import Masking
from client.institution.unmasked import Unmasked
from protocol.identity import Identity
from protocol.roster import Member, Roster
from protocol.secure_aggregation.contribution import Contribution, Sum
from protocol.secure_aggregation.masks import Masked
from protocol.secure_aggregation.session import Session
from server.unmasking import Unmasking

SESSION = Session("lab", "0" * 32, "train", 1, 2 / 3, 2.0, 100)
NAMES = ("a", "b", "c", "d", "e")


class Remembering(Identity):
    """Signs the same message with the same signature, so that transcripts can be compared."""

    def sign(self, purpose: str, message: bytes) -> bytes:
        known = self.__dict__.setdefault("_known", {})
        if (purpose, message) not in known:
            known[purpose, message] = super().sign(purpose, message)
        return known[purpose, message]


IDENTITIES = {name: Remembering.ephemeral() for name in (*NAMES, "stranger")}
ROSTER = Roster(
    "lab", 1, tuple(Member(name, "institution", IDENTITIES[name].public) for name in NAMES)
)


class Drawn:
    """Stands for the operating system's randomness, and repeats."""

    def __init__(self, name: str) -> None:
        self._name, self._drawn = name, 0

    def __call__(self, count: int) -> bytes:
        self._drawn += 1
        return hashlib.shake_256(f"{self._name}/{self._drawn}".encode()).digest(count)


def masking(name: str, roster: Roster = ROSTER, minimum: int = 2) -> Masking:
    """An institution with nothing behind it; its randomness repeats."""
    state: dict[str, object] = {}
    identity = IDENTITIES[name]
    return Masking(identity, roster, state, Unmasked(state, None), minimum, Drawn(name))


class Parties:
    """Goes through a session step by step; ``seen`` is all that the coordinator ever sees."""

    def __init__(self, names: Sequence[str] = NAMES, session: Session = SESSION) -> None:
        self.session = session
        self.institutions = {name: masking(name) for name in names}
        self.coordinator = Unmasking(session, ROSTER)
        self.seen: list[bytes] = []

    def keys(self, equal: Iterable[str] = ()) -> bytes:
        for name, one in self.institutions.items():
            shown = self._see(one.advertise(self.session, name in equal))
            assert self.coordinator.take_keys(shown) == name
        return self.coordinator.roll.to_bytes()

    def share(self, silent: Iterable[str] = ()) -> None:
        roll = self.coordinator.roll.to_bytes()
        for name, one in self.institutions.items():
            if name not in silent:
                self.coordinator.take_parcels(name, self._see(one.share(self.session, roll)))

    def receive(self, name: str) -> None:
        parcels = self.coordinator.parcels_for(name)
        self.institutions[name].receive(self.session, parcels)

    def vector(self, name: str, values: object, weight: int = 100) -> Masked:
        self.receive(name)
        update = np.asarray(values, np.float32)
        given = Contribution(update, np.array([weight], float), weight)
        words, _ = self.institutions[name].mask(self.session, given)
        self._see(words.update.tobytes() + words.totals.tobytes())
        return words

    def vectors(self, values: dict[str, object], late: Iterable[str] = ()) -> None:
        """Those who are ``late`` are seen, and not counted."""
        for name in self.coordinator.dealt:
            if name in values:
                words = self.vector(name, values[name])
                if name not in late:
                    self.coordinator.take_masked(name, words)

    def agree(self) -> None:
        if self.coordinator.complete:
            return
        survivors, _ = self.coordinator.closing()
        for name in self.coordinator.survivors:
            said = self.institutions[name].agree(self.session, survivors)
            self.coordinator.take_signature(name, self._see(said))

    def reveal(self) -> None:
        survivors, agreement = self.coordinator.closing()
        for name in self.coordinator.survivors:
            said = self.institutions[name].unmask(self.session, survivors, agreement)
            self.coordinator.take_revealed(name, self._see(said))

    def run(self, values: dict[str, object], late: Iterable[str] = ()) -> Sum:
        self.keys()
        self.share()
        self.vectors(values, late)
        self.agree()
        self.reveal()
        return self.coordinator.unmask()

    def next(self) -> "Parties":
        """The same institutions in the next session."""
        following = Parties((), replace(self.session, number=self.session.number + 1))
        following.institutions = self.institutions
        return following

    def _see(self, content: bytes) -> bytes:
        self.seen.append(content)
        return content
