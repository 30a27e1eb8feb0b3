"""An institution's side of secure aggregation: what it shows, hides, signs and reveals.

It is asked for these in order, each once in a session (Bonawitz et al. 2017, figure 4):

1. ``advertise``  new keys, signed. A reply to 5 carries those of the next session, so this is a
   message of its own in a run's first round alone, and for who comes back to a run.
2. ``share``      all keys, verified against its own roster -> shares of its two secrets for each
3. ``train``      the others' shares -> its vector under masks (also ``evaluate``, ``statistics``)
4. ``agree``      where somebody dropped out: whose vectors arrived -> its signature of that list
5. ``unmask``     enough signatures of one list -> of each participant one share of one secret

So a round takes three messages, four where somebody drops out. None of them can go: shares have to
be with the others before anybody drops out, a list of survivors is not known before the vectors are
there, and one that leaves somebody out has to be agreed to before anything is revealed.

Everything between two messages lies in ``state``, which is memory: of a crash nothing is left, and
the institution drops out of that round. An institution's own secrets are gone from it as soon as
its vector is masked; what it holds of others' goes when it has revealed what it may.
"""

import os
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from client.institution.unmasked import Unmasked
from protocol.errors import MalformedMessage, UsageError
from protocol.identity import Identity
from protocol.roster import Member, Roster
from protocol.secure_aggregation.contribution import Contribution, quantise
from protocol.secure_aggregation.fields import (
    join_fields,
    join_names,
    read_names,
    split_fields,
)
from protocol.secure_aggregation.keys import EphemeralKeys
from protocol.secure_aggregation.masks import Masked, pair_key, pair_sign, self_key
from protocol.secure_aggregation.parcels import Shares, deal, join_parcels, read_parcels
from protocol.secure_aggregation.revealed import join_revealed
from protocol.secure_aggregation.roll import Roll
from protocol.secure_aggregation.session import MAX_PARTICIPANTS, MIN_PARTICIPANTS, Session
from protocol.secure_aggregation.survivors import check_agreement, sign_survivors

_SECRETS = ("keys", "own", "held")


def forget(state: MutableMapping[str, Any]) -> None:
    """Drop everything of the session that is under way; what was unmasked stays known."""
    for key in ("session", "stage", "shown", "roll", "circle", "survivors", *_SECRETS):
        state.pop(key, None)


@dataclass(frozen=True, slots=True)
class Masking:
    """One institution in one session after another.

    ``state`` keeps bytes and texts between messages. ``minimum`` is the least number of
    participants whose sum it will be a part of. ``random`` gives bytes from the operating system.
    Every method raises MalformedMessage, with nothing shown or revealed, when the coordinator asks
    for what it may not have.
    """

    identity: Identity
    roster: Roster
    state: MutableMapping[str, Any]
    unmasked: Unmasked
    minimum: int = MIN_PARTICIPANTS
    random: Callable[[int], bytes] = os.urandom

    @property
    def member(self) -> Member:
        """Who one is in one's own roster. Raises UsageError if one is not in it."""
        found = self.roster.find(self.identity.public)
        if found is None or found.role != "institution":
            raise UsageError(
                "this institution's key is not in its own roster",
                "ask the coordinator for the federation's current roster.json",
            )
        return found

    def advertise(self, session: Session, equal: bool) -> bytes:
        """New keys for ``session``; whatever was under way is given up.

        ``equal`` keeps its number of examples to itself.
        """
        name = self.member.name
        self.unmasked.require_new(session)
        if session.federation != self.roster.federation:
            raise MalformedMessage(
                f"federation: expected {self.roster.federation}, got {session.federation!r:.80}"
            )
        keys = EphemeralKeys.create(self.random)
        shown = keys.advertise(session, self.identity, name, equal)
        self.forget()
        self.state.update(
            session=session.label, stage="advertised", keys=keys.to_bytes(), shown=shown.to_bytes()
        )
        return shown.to_bytes()

    def share(self, session: Session, participants: object) -> bytes:
        """Parcels for the others, of shares of both secrets; once in a session.

        Verifies everybody in the list against this institution's own roster.
        """
        self._expect(session, "advertised")
        roll = Roll.read(session, participants)
        roll.verify(self.roster)
        self._require_minimum(len(roll.shown))
        name = self.member.name
        if roll.find(name).to_bytes() != self.state["shown"]:
            raise MalformedMessage("participants: these are not the keys that this one showed")
        parcels, own = deal(roll, name, self._keys(), self.random)
        self.state.update(stage="shared", roll=roll.to_bytes(), own=own.seed + own.mask)
        return join_parcels(parcels)

    def receive(self, session: Session, parcels: object) -> Roll:
        """Open what the others dealt; who dealt it is whom masks are made with."""
        self._expect(session, "shared")
        roll, name, keys = self._roll(session), self.member.name, self._keys()
        found = {name: Shares(self.state["own"][:33], self.state["own"][33:])}
        for parcel in read_parcels(parcels):
            if parcel.receiver != name or parcel.sender in found:
                raise MalformedMessage("parcels: one is there twice, or for somebody else")
            found[parcel.sender] = parcel.open(roll, keys)
        self._require_minimum(len(found), roll)
        held = [part for one in found for part in (one.encode(), found[one].seed, found[one].mask)]
        self.state.update(stage="received", circle=join_names(found), held=join_fields(held))
        del self.state["own"]
        return roll

    def mask(self, session: Session, given: Contribution) -> tuple[Masked, int]:
        """The contribution under its masks, and how many values were clipped.

        This institution's own secrets are gone when it returns.
        """
        self._expect(session, "received")
        roll, name, keys = self._roll(session), self.member.name, self._keys()
        names, circle = self._circle(roll)
        words, clipped = quantise(given, session, len(roll.shown))
        words.add(self_key(keys.seed, circle, name), 1)
        for other in names:
            if other != name:
                key = pair_key(keys.mask, roll.find(other).mask_key, circle, name, other)
                words.add(key, pair_sign(name, other))
        self.state["stage"] = "masked"
        del self.state["keys"]
        return words, clipped

    def agree(self, session: Session, survivors: object) -> bytes:
        """A signature of the list of those whose vectors arrived; of one list in a session."""
        self._expect(session, "masked", "agreed")
        roll = self._roll(session)
        _, circle = self._circle(roll)
        names = self._survivors(roll, survivors)
        self.state.update(stage="agreed", survivors=join_names(names))
        return sign_survivors(self.identity, circle, names)

    def unmask(self, session: Session, survivors: object, agreement: object) -> bytes:
        """Of each survivor a share of its seed, of each other one of its mask key; once.

        Never both of anybody: that is what hides a vector that came late, or that the
        coordinator says did not come.
        """
        self._expect(session, "masked", "agreed")
        self.unmasked.require_new(session)
        roll = self._roll(session)
        participants, circle = self._circle(roll)
        names = self._survivors(roll, survivors)
        if names != participants:
            check_agreement(agreement, roll, self.roster, circle, names)
        fields = split_fields(self.state["held"], "state", range(3 * MAX_PARTICIPANTS + 1), 63)
        revealed = {
            name: seed if name in names else mask
            for name, seed, mask in (
                (fields[at].decode(), fields[at + 1], fields[at + 2])
                for at in range(0, len(fields), 3)
            )
        }
        self.unmasked.record(session)
        self.forget()
        return join_revealed(revealed)

    def forget(self) -> None:
        """Give up the session that is under way, and drop its secrets."""
        forget(self.state)

    def _expect(self, session: Session, *stages: str) -> None:
        if self.state.get("session") != session.label or self.state.get("stage") not in stages:
            raise MalformedMessage(
                f"{session}: not under way here, or asked for twice or out of turn",
                "an institution that was started anew joins the next round",
            )

    def _survivors(self, roll: Roll, content: object) -> tuple[str, ...]:
        names = read_names(content, "survivors", len(roll.shown))
        participants, _ = self._circle(roll)
        if not set(names) <= set(participants) or self.member.name not in names:
            raise MalformedMessage("survivors: a stranger is among them, or this one is not")
        if self.state.get("survivors", join_names(names)) != join_names(names):
            raise MalformedMessage("survivors: this institution has agreed to another list")
        self._require_minimum(len(names), roll)
        return names

    def _require_minimum(self, count: int, roll: Roll | None = None) -> None:
        least = max(self.minimum, roll.threshold if roll else MIN_PARTICIPANTS)
        if count < least:
            raise MalformedMessage(
                f"participants: expected at least {least}, got {count}",
                "wait for more institutions: a sum of so few hides nobody",
            )

    def _keys(self) -> EphemeralKeys:
        return EphemeralKeys.from_bytes(self.state["keys"])

    def _roll(self, session: Session) -> Roll:
        return Roll.read(session, self.state["roll"])

    def _circle(self, roll: Roll) -> tuple[tuple[str, ...], bytes]:
        names = read_names(self.state["circle"], "state", MAX_PARTICIPANTS)
        return names, roll.circle(names)
