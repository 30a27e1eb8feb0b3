"""The exchanges of secure aggregation, over Flower: who is asked what, and who drops out when.

A session is "share", the message that asks for the vector, and "unmask"; "advertise" before it for
those whose keys are not there yet (a run's first session, an institution that comes back), and
"agree" in between where somebody dropped out. ``client.institution.masking`` says why it takes
all of them. In a deployment each costs the start of a process at every institution.
"""

import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias, TypeVar

from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict

from protocol.errors import MalformedMessage
from protocol.model.masking import (
    ADVERTISE,
    AGREE,
    MASKED,
    RECORD,
    SHARE,
    UNMASK,
    named,
    read_masked,
)
from protocol.roster import Roster
from protocol.secure_aggregation.contribution import Sum
from protocol.secure_aggregation.masks import Masked
from protocol.secure_aggregation.session import Session
from server.replies import collect, count_bytes, read_epsilon, size_of
from server.unmasking import Unmasking

Records: TypeAlias = dict[str, ArrayRecord | ConfigRecord]
#: Sends its own records to each node, and returns the replies that came in time.
Ask: TypeAlias = Callable[[str, Mapping[int, Records]], list[Message]]
_Read = TypeVar("_Read")
_Who = TypeVar("_Who")
_What = TypeVar("_What")


@dataclass(slots=True)
class Secured:
    """What a session gave: ``total`` is None where ``failure`` says why there is none.

    ``survivors`` are the nodes that the sum is of, ``reasons`` say why the others are not in it.
    ``equal``: all weighed the same. ``epsilons`` are what nodes say that their records have paid,
    where their policies let them. ``sent`` is the size of all replies of a node, ``received``
    that of what all were sent. ``overhead`` counts the bytes up and down of everything but vectors
    and what they were made from, ``seconds`` is the time beside the wait for vectors.
    """

    total: Sum | None = None
    failure: str | None = None
    survivors: tuple[int, ...] = ()
    reasons: dict[int, str] = field(default_factory=dict)
    equal: bool = False
    exchanges: int = 0
    epsilons: dict[int, float] = field(default_factory=dict)
    sent: dict[int, int] = field(default_factory=dict)
    received: int = 0
    overhead: int = 0
    seconds: float = 0.0


@dataclass(slots=True)
class SecureSum:
    """Sums among nodes, one session after another; ``roster`` is the coordinator's own."""

    ask: Ask
    roster: Roster
    _waiting: dict[bytes, dict[int, bytes]] = field(default_factory=dict)

    def of(
        self,
        session: Session,
        kind: str,
        contents: Mapping[int, Records],
        sizes: tuple[int, int],
        quorum: int,
        following: Session | None = None,
    ) -> Secured:
        """The sum of what the nodes of ``contents`` answer to ``kind``.

        ``sizes`` are the values of an update and of totals. Fewer than ``quorum`` vectors are not
        unmasked. Institutions are asked for their keys of the ``following`` session as well.
        """
        exchange = _Exchange(self, session, following)
        started = time.monotonic()
        try:
            exchange.keys(contents, self._waiting.pop(session.label, {}))
            waited = exchange.vectors(kind, contents, sizes)
            if len(exchange.unmasking.survivors) < quorum:
                raise MalformedMessage(
                    f"{len(exchange.unmasking.survivors)} masked vectors, expected at least "
                    f"{quorum}"
                )
            exchange.unmask()
            exchange.found.seconds = time.monotonic() - started - waited
        except MalformedMessage as error:
            exchange.found.failure = error.message
        return exchange.found

    def keep(self, session: Session, node: int, shown: bytes) -> None:
        """Keys of the next session, which came with a reply."""
        self._waiting = {session.label: self._waiting.get(session.label, {}) | {node: shown}}


class _Exchange:
    """One session under way."""

    def __init__(self, sums: SecureSum, session: Session, following: Session | None) -> None:
        self.found = Secured()
        self.unmasking = Unmasking(session, sums.roster)
        self._sums, self._session, self._following = sums, session, following
        self._names: dict[int, str] = {}

    def keys(self, nodes: Collection[int], shown: dict[int, bytes]) -> None:
        """Who takes part, and the shares that they deal."""
        missing = [node for node in nodes if node not in shown]
        if missing:
            read = partial(_bytes, name="advertisement")
            shown = shown | self._ask(ADVERTISE, {node: {} for node in missing}, read)
        for node in nodes:
            if node in shown:
                self._take(node, self._enrol, node, shown[node])
        self._expect(2, len(self._names), "institutions showed keys")
        roll = self.unmasking.roll
        self.found.equal = roll.equal
        said_to = {node: {"participants": roll.to_bytes()} for node in self._names}
        parcels = self._ask(SHARE, said_to, partial(_bytes, name="parcels"))
        for node, dealt in parcels.items():
            self._take(node, self.unmasking.take_parcels, self._names[node], dealt)
        self._expect(roll.threshold, len(self.unmasking.dealt), "institutions dealt shares")

    def vectors(self, kind: str, contents: Mapping[int, Records], sizes: tuple[int, int]) -> float:
        """The masked vectors of those who dealt; returns the seconds that they took."""
        started = time.monotonic()
        dealt = [node for node, name in self._names.items() if name in self.unmasking.dealt]
        said = {node: {"parcels": self.unmasking.parcels_for(self._names[node])} for node in dealt}
        vectors = self._ask(kind, said, partial(_masked, sizes=sizes), contents)
        for node, (words, epsilon) in vectors.items():
            self._take(node, self.unmasking.take_masked, self._names[node], words)
            if epsilon is not None:
                self.found.epsilons[node] = epsilon
        survivors = self.unmasking.survivors
        self.found.survivors = tuple(n for n, name in self._names.items() if name in survivors)
        self._expect(self.unmasking.roll.threshold, len(survivors), "masked vectors arrived")
        return time.monotonic() - started

    def unmask(self) -> None:
        """Has the survivors agreed to where they have to be, and their shares revealed."""
        survivors, agreement = self.unmasking.closing()
        if not self.unmasking.complete:
            said = {node: {"survivors": survivors} for node in self.found.survivors}
            signed = self._ask(AGREE, said, partial(_bytes, name="signature"))
            for node, one in signed.items():
                self._take(node, self.unmasking.take_signature, self._names[node], one)
            agreed = self.unmasking.agreed
            self._expect(self.unmasking.roll.threshold, agreed, "institutions agreed to the rest")
            survivors, agreement = self.unmasking.closing()
        closing: dict[str, bytes | str | int] = {"survivors": survivors}
        if agreement:
            closing["agreement"] = agreement
        if self._following is not None:
            closing |= {
                "next-purpose": self._following.purpose,
                "next-number": self._following.number,
            }
        replies = self._ask(UNMASK, dict.fromkeys(self.found.survivors, closing), _closing)
        for node, (revealed, shown) in replies.items():
            self._take(node, self.unmasking.take_revealed, self._names[node], revealed)
            if self._following is not None and shown is not None:
                self._sums.keep(self._following, node, shown)
        try:
            self.found.total = self.unmasking.unmask()
        except MalformedMessage as error:
            why = "; ".join(
                f"{self._names[node]}: {self.found.reasons[node]}"
                for node in self.found.survivors
                if node in self.found.reasons
            )
            raise MalformedMessage(f"{error.message} ({why})" if why else error.message) from error

    def _enrol(self, node: int, shown: bytes) -> None:
        self._names[node] = self.unmasking.take_keys(shown)

    def _ask(
        self,
        kind: str,
        said: Mapping[int, Mapping[str, bytes | str | int]],
        read: Callable[[RecordDict], _Read],
        contents: Mapping[int, Records] | None = None,
    ) -> dict[int, _Read]:
        about: dict[str, bytes | str | int] = {
            "purpose": self._session.purpose,
            "number": self._session.number,
        }
        records: dict[int, Records] = {}
        for node, values in said.items():
            masking = ConfigRecord({**about, **values})
            records[node] = {**(contents[node] if contents else {}), RECORD: masking}
            self.found.overhead += size_of(masking)
            self.found.received += sum(size_of(one) for one in records[node].values())
        replies = self._sums.ask(kind, records)
        self.found.exchanges += 1
        for reply in replies:
            node, size = reply.metadata.src_node_id, count_bytes(reply)
            self.found.sent[node] = self.found.sent.get(node, 0) + size
            if contents is None:
                self.found.overhead += size
        found, reasons = collect(replies, said, read)
        self.found.reasons |= reasons
        return found

    def _take(self, node: int, take: Callable[[_Who, _What], None], who: _Who, what: _What) -> None:
        try:
            take(who, what)
        except MalformedMessage as error:
            self.found.reasons[node] = error.message

    def _expect(self, least: int, got: int, what: str) -> None:
        if got < least:
            raise MalformedMessage(f"{got} {what}, expected at least {least}")


def _bytes(content: RecordDict, name: str) -> bytes:
    return named(content.config_records.get(RECORD), name)


def _closing(content: RecordDict) -> tuple[bytes, bytes | None]:
    shown = content.config_records.get(RECORD, ConfigRecord()).get("advertisement")
    return _bytes(content, "revealed"), shown if isinstance(shown, bytes) else None


def _masked(content: RecordDict, sizes: tuple[int, int]) -> tuple[Masked, float | None]:
    return read_masked(content.array_records.get(MASKED), *sizes), read_epsilon(content)
