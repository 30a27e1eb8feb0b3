"""The gRPC face of an institution: parse, call one verb, answer. docs/protocol.md section 4.

Every call is let in, counted and noted in one place, ``_called``: first who asks, then whether the
policy and the limits allow it. A question is charged on disk before it is scored, and items before
they are read.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import grpc

from client.institution.serving.books import DAY_SECONDS, Books
from client.institution.serving.deadlines import Deadlines
from client.institution.serving.gate import Caller, Gate, Peer, certificate_digest
from client.institution.serving.json_log import facts
from client.institution.serving.ledger import Charge, Kind
from client.institution.serving.metrics import Metrics
from client.institution.serving.refusals import Refusals
from client.institution.serving.served import Epoch, Served
from client.institution.serving.tickets import Tickets
from client.institution.serving.turnstile import Turnstile
from protocol import wire
from protocol.blindsight.v1 import retrieval_pb2 as pb
from protocol.blindsight.v1 import retrieval_pb2_grpc as rpc
from protocol.errors import BlindsightError, LimitReached, MalformedMessage
from protocol.scheme import EncryptedScores, Seeded

log = logging.getLogger(__name__)


@dataclass
class _Call:
    """One call under way."""

    verb: str
    caller: Caller
    epoch: Epoch
    sent: int = 0


class RetrievalServicer(rpc.RetrievalServicer):
    """Serves one index to the callers that a gate lets in; without books nothing is charged."""

    def __init__(
        self,
        served: Served,
        gate: Gate,
        turnstile: Turnstile,
        metrics: Metrics,
        books: Books | None,
        seconds: float,
    ) -> None:
        """A call may take ``seconds`` in all, its waiting included."""
        self._served, self._gate, self._turnstile = served, gate, turnstile
        self._metrics, self._books = metrics, books
        self._refusals = Refusals(books.note) if books else None
        self._deadlines, self._tickets = Deadlines(seconds), Tickets()
        metrics.under_way.set_function(lambda: turnstile.inside)
        metrics.epoch.set_function(lambda: served.described.epoch)
        metrics.indexed.set_function(lambda: served.described.layout.items)

    def Describe(
        self, request: pb.DescribeRequest, context: grpc.ServicerContext
    ) -> pb.DescribeResponse:
        """Say what is served; nothing here depends on who asks."""
        with self._called("describe", context) as call:
            return call.epoch.described.to_message()

    def Score(
        self, request: pb.ScoreRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ScoreResponse]:
        """Score an encrypted question; the work stops when the searcher goes away."""
        with self._called("score", context) as call:
            question = wire.parse_score_request(request, call.epoch.described)
            left = self._charge(call, "question", 1)
            for _, message in self._answers(call, [question], left, context):
                yield message

    def Screen(
        self, request_iterator: Iterator[pb.ScoreRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.ScreenResponse]:
        """Score several encrypted questions in one pass."""
        with self._called("screen", context) as call:
            questions: list[tuple[list[Seeded], list[Seeded]]] = []
            for request in request_iterator:
                if len(questions) == wire.MAX_PROBES:
                    raise MalformedMessage(f"at most {wire.MAX_PROBES} questions are screened")
                questions.append(wire.parse_score_request(request, call.epoch.described))
            if not questions:
                raise MalformedMessage("1 question or more are screened, got none")
            left = self._charge(call, "question", len(questions))
            for number, message in self._answers(call, questions, left, context):
                yield pb.ScreenResponse(question=number, scores=message)

    def Fetch(
        self, request: pb.FetchRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.FetchResponse]:
        """Return what is released of the items asked for, decoys among them."""
        with self._called("fetch", context) as call:
            caller, described = call.caller, call.epoch.described
            positions = wire.parse_fetch_request(
                request,
                described,
                lambda ticket: self._tickets.check(caller.key, ticket, described.epoch),
            )
            left = self._charge(call, "item", len(positions))
            items = list(zip(positions, call.epoch.index.items(positions), strict=True))
            for message in call.epoch.releasing.messages(items, caller.policy.release):
                if not call.sent:
                    wire.tell_left(message, left)
                call.sent += message.ByteSize()
                yield message

    def close(self) -> None:
        """Stop scoring, write what is noted."""
        self._served.close()
        self._deadlines.close()
        if self._refusals:
            self._refusals.close()
        if self._books:
            self._books.close()

    def _answers(
        self,
        call: _Call,
        questions: list[tuple[list[Seeded], list[Seeded]]],
        left: int | None,
        context: grpc.ServicerContext,
    ) -> Iterator[tuple[int, pb.ScoreResponse]]:
        caller, layout = call.caller, call.epoch.described.layout
        grant = self._tickets.issue(caller.key, call.epoch.described.epoch)
        scored: Iterator[tuple[int, EncryptedScores]] = call.epoch.scorer.screen(
            questions, context.is_active, caller.fingerprint, caller.score_bits
        )
        for number, scores in scored:
            message = wire.score_response(layout, scores)
            if scores.first_block == 0:
                message.ticket, message.secret = grant.ticket, grant.secret
                wire.tell_left(message, left)
            call.sent += message.ByteSize()
            yield number, message

    def _charge(self, call: _Call, kind: Kind, count: int) -> int | None:
        """Charge on disk; return what is left of the day's budget, None without books.

        Raises LimitReached where it has no room.
        """
        left: int | None = None
        counted = self._metrics.questions if kind == "question" else self._metrics.items
        if self._books:
            policy, caller = call.caller.policy, call.caller
            budget = policy.queries_a_day if kind == "question" else policy.items_a_day
            charge = Charge(caller.fingerprint, kind, count, budget)
            epoch = call.epoch.described.epoch
            who = {"searcher": caller.name, "key": caller.fingerprint}
            left = self._books.charge(charge, call.verb, **who, count=count, epoch=epoch)
            if left is None:
                error = LimitReached(
                    f"{count} more would pass today's {budget:,} {kind}s", "Ask again tomorrow."
                )
                error.retry_after_ms = round(1000 * (DAY_SECONDS - time.time() % DAY_SECONDS))
                raise error
        counted.inc(count)
        return left

    @contextmanager
    def _called(self, verb: str, context: grpc.ServicerContext) -> Iterator[_Call]:
        """Let a call in, keep its limits while the block runs, and note how it ended."""
        since, code, name = time.perf_counter(), "internal", ""
        call: _Call | None = None
        try:
            # A reader that stopped reading holds a thread; the limit is what takes it back.
            with self._deadlines.limit(context.cancel):
                caller = self._gate.admit(cast(Peer, context.auth_context()))
                name = caller.name
                with self._turnstile.enter(caller.fingerprint), self._served.current() as epoch:
                    caller.policy.check(name, epoch.described.layout.items, datetime.now(UTC))
                    call = _Call(verb, caller, epoch)
                    yield call
            code = "ok" if context.is_active() else "cancelled"
        except BlindsightError as error:
            code = error.code
            if self._refusals:
                known = certificate_digest(cast(Peer, context.auth_context()))
                self._refusals.seen(searcher=name, certificate=known, verb=verb, code=code)
            raise
        except GeneratorExit:
            code = "cancelled"
            raise
        finally:
            seconds, sent = time.perf_counter() - since, call.sent if call else 0
            if self._refusals:
                self._refusals.write_due()
            self._metrics.calls.labels(verb, code).inc()
            self._metrics.seconds.labels(verb).observe(seconds)
            self._metrics.sent.inc(sent)
            if self._books and sent:
                self._books.note("answered", searcher=name, verb=verb, code=code, bytes=sent)
            told = facts(searcher=name, verb=verb, code=code, ms=round(1e3 * seconds), bytes=sent)
            log.info("call", extra=told)
