"""Secure aggregation in the institution's Flower app: from messages to ``masking`` and back.

The institution's own settings say who it is: ``identity``, the folder of its key and of the
federation's authority; ``roster``, the file that the authority signed; ``audit``, its log. Its
policy says of how few it takes part in no sum.
"""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from flwr.app import ConfigRecord, Context, RecordDict

from client.institution.masking import Masking, forget
from client.institution.residual import run_of
from client.institution.unmasked import Unmasked
from protocol.audit import AuditLog
from protocol.certificates import Certificate
from protocol.errors import MalformedMessage, UsageError
from protocol.identity import Identity
from protocol.model.masking import MASKED, RECORD, named, pack_masked, session_of
from protocol.model.settings import TrainingSettings
from protocol.roster import Roster
from protocol.secure_aggregation.contribution import Contribution
from protocol.secure_aggregation.fields import read_names
from protocol.secure_aggregation.roll import Roll
from protocol.secure_aggregation.session import MAX_PARTICIPANTS, MIN_PARTICIPANTS, Session

_STATE = "masking"
_log = logging.getLogger("blindsight.institution")


class Refusal(MalformedMessage):
    """What the coordinator is told whole: it speaks of parties and rounds, never of data."""


@dataclass(frozen=True, slots=True)
class Entered:
    """A session in which the others' shares have arrived; what is left is to add one's own."""

    masking: Masking
    session: Session
    roll: Roll

    def weight(self, examples: int) -> int:
        """What an institution with so many examples weighs; all the same if one hides its own."""
        most = self.session.max_weight
        return most if self.roll.equal else min(examples, most)

    def reply(self, given: Contribution) -> RecordDict:
        """The contribution under its masks. What was clipped is told to nobody else."""
        words, clipped = self.masking.mask(self.session, given)
        if clipped:
            _log.warning(
                "%s: %d values were cut to the clipping range of %g",
                self.session,
                clipped,
                self.session.clipping_range,
            )
        return RecordDict({MASKED: pack_masked(words)})


@dataclass(frozen=True, slots=True)
class Aggregation:
    """What an institution answers in sessions: glue between one message and ``masking``.

    Raises Refusal for what it does not do, UsageError when its own settings do not fit.
    """

    masking: Masking
    audit: Path | None
    equal: bool

    @classmethod
    def of(cls, context: Context, state: Path | None, equal: bool, minimum: int) -> Self:
        """From the institution's own settings; ``equal`` keeps its number of examples to itself."""
        config = context.node_config
        identity, roster, audit = (config.get(key, "") for key in ("identity", "roster", "audit"))
        if not (isinstance(identity, str) and isinstance(roster, str) and identity and roster):
            raise UsageError(
                "secure aggregation needs the institution's settings identity and roster",
                "install the institution's startup kit",
            )
        memory = context.state.config_records.get(_STATE)
        if memory is None:
            context.state[_STATE] = memory = ConfigRecord()
        authority = Certificate.load(Path(identity) / "authority.pem").identity
        masking = Masking(
            Identity.load(Path(identity) / "private-key.pem"),
            Roster.read(Path(roster), authority),
            memory,
            Unmasked(memory, state),
            max(minimum, MIN_PARTICIPANTS),
        )
        return cls(masking, Path(audit) if isinstance(audit, str) and audit else None, equal)

    def enter(self, content: RecordDict, purpose: str) -> Entered:
        """Take the others' shares out of a message that asks for a vector."""
        session = self._session(content)
        if session.purpose != purpose:
            raise MalformedMessage(f"purpose: expected {purpose}, got {session.purpose}")
        if (
            purpose == "train"
            and session.number != content.config_records["config"]["server-round"]
        ):
            raise MalformedMessage("number: expected that of the round")
        with _telling():
            roll = self.masking.receive(session, _said(content, "parcels"))
        return Entered(self.masking, session, roll)

    def advertise(self, content: RecordDict) -> RecordDict:
        """Answers with "advertisement"."""
        with _telling():
            return _reply(
                "advertisement", self.masking.advertise(self._session(content), self.equal)
            )

    def share(self, content: RecordDict) -> RecordDict:
        """From "participants" to "parcels"."""
        with _telling():
            participants = _said(content, "participants")
            return _reply("parcels", self.masking.share(self._session(content), participants))

    def agree(self, content: RecordDict) -> RecordDict:
        """From "survivors" to "signature"."""
        with _telling():
            survivors = _said(content, "survivors")
            return _reply("signature", self.masking.agree(self._session(content), survivors))

    def unmask(self, content: RecordDict) -> RecordDict:
        """From "survivors" and "agreement" to "revealed", and the next session's "advertisement".

        The audit log has it before anything leaves. Raises StorageError if it cannot.
        """
        session = self._session(content)
        with _telling():
            survivors = _said(content, "survivors")
            agreement = content.config_records[RECORD].get("agreement", b"")
            revealed = self.masking.unmask(session, survivors, agreement)
        if self.audit is not None:
            AuditLog(self.audit).record(
                "sum-unmasked",
                run=session.run,
                purpose=session.purpose,
                number=session.number,
                institutions=len(read_names(survivors, "survivors", MAX_PARTICIPANTS)),
                survivors_sha256=hashlib.sha256(survivors).hexdigest(),
            )
        reply = _reply("revealed", revealed)
        if "next-purpose" in content.config_records[RECORD]:
            following = self._session(content, "next-")
            shown = self.masking.advertise(following, self.equal)
            reply.config_records[RECORD]["advertisement"] = shown
        return reply

    def _session(self, content: RecordDict, which: str = "") -> Session:
        config = content.config_records.get("config", ConfigRecord())
        said = content.config_records.get(RECORD, ConfigRecord())
        settings = TrainingSettings.from_run_config(config)
        purpose, number = said.get(f"{which}purpose"), said.get(f"{which}number")
        if not isinstance(purpose, str) or type(number) is not int:
            raise MalformedMessage(f"{RECORD}: expected a purpose and a number")
        return session_of(settings, self.masking.roster.federation, run_of(config), purpose, number)


def give_up(context: Context) -> None:
    """Drop the secrets of the session under way, if there is one: there is nothing to add to it."""
    memory = context.state.config_records.get(_STATE)
    if memory is not None:
        forget(memory)


@contextmanager
def _telling() -> Iterator[None]:
    try:
        yield
    except MalformedMessage as error:
        raise Refusal(error.message, error.hint) from error


def _said(content: RecordDict, name: str) -> bytes:
    return named(content.config_records.get(RECORD), name)


def _reply(name: str, value: bytes) -> RecordDict:
    return RecordDict({RECORD: ConfigRecord({name: value})})
