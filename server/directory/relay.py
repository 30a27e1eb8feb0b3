"""The relay: joins a searcher's call to one of an institution, and hands on what they send.

It sees TLS records of a connection between the two, and whose they are, when and how many: no more.
It holds no byte longer than it takes to hand it on. Each of the two handlers of a call writes what
the other one reads, and reads the next frame when gRPC has sent the one before; HTTP/2's windows do
the rest. So a slow reader stops its writer, and not the relay.
"""

import asyncio
import logging
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from protocol.admission import Admission
from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.blindsight.v1 import directory_pb2_grpc as rpc
from protocol.directory_wire import ATTACHED, CALL_BYTES, parse_accept, parse_connect, parse_payload
from protocol.errors import LimitReached, MalformedMessage, NotAdmitted
from protocol.roster import Member, Role
from server.directory.answering import Context, Refused, abort
from server.directory.settings import Limits

log = logging.getLogger(__name__)
Frames = AsyncIterator[pb.RelayFrame]


class Call:
    """One connection: the ends meet here, and both end when one of them does."""

    def __init__(self, searcher: str, institution: Member, idle_seconds: float) -> None:
        self.name = secrets.token_bytes(CALL_BYTES)
        self.searcher, self.institution = searcher, institution
        self.up: asyncio.Future[Frames] = asyncio.get_running_loop().create_future()
        self.down: asyncio.Future[Frames] = asyncio.get_running_loop().create_future()
        self._idle_seconds = idle_seconds
        self._limits: list[asyncio.Timeout] = []
        self._over = False

    async def hand_on(self, frames: Frames, context: Context) -> None:
        """Write what the other end sends until one of them ends, or nothing passes for long.

        Raises Refused in the latter case, MalformedMessage for a frame that is none.
        """
        if self._over:
            return
        try:
            async with asyncio.timeout(self._idle_seconds) as limit:
                self._limits.append(limit)
                async for frame in frames:
                    parse_payload(frame)
                    await context.write(frame)
                    self._touch()
        except TimeoutError:
            if not self._over:
                raise Refused(
                    grpc.StatusCode.DEADLINE_EXCEEDED,
                    f"nothing came for {self._idle_seconds:g} seconds",
                ) from None
        finally:
            self.end()

    def end(self) -> None:
        """End both handlers."""
        self._over = True
        for one in self._limits:
            _move(one, 0.0)

    def _touch(self) -> None:
        if not self._over:
            for one in self._limits:
                _move(one, self._idle_seconds)


class RelayServicer(rpc.RelayServicer):
    """Knows which institutions are attached, and the calls that are open."""

    def __init__(self, admission: Admission, limits: Limits) -> None:
        self._admission, self._limits = admission, limits
        self._attached: dict[str, asyncio.Queue[Call | None]] = {}
        self._waiting: dict[bytes, Call] = {}
        self._open: Counter[tuple[Role | None, str]] = Counter()

    async def Attach(  # type: ignore[override]  # the stubs know threads
        self, request: pb.AttachRequest, context: Context
    ) -> None:
        """Tell an institution of each call to it. A later stream of it takes the place of this."""
        try:
            member = self._admit(context, "institution")
        except Exception as error:
            await abort(error, context)
        queue: asyncio.Queue[Call | None] = asyncio.Queue(self._limits.calls_to_institution + 1)
        former = self._attached.get(member.name)
        if former is not None:
            if former.full():  # nobody reads it
                former.get_nowait()
            former.put_nowait(None)
        self._attached[member.name] = queue
        log.info("%s is attached", member.name)
        try:
            await context.send_initial_metadata(((ATTACHED, "1"),))
            while (call := await queue.get()) is not None:
                await context.write(pb.IncomingCall(call=call.name))
            await abort(Refused(grpc.StatusCode.ABORTED, "it is attached anew"), context)
        finally:
            if self._attached.get(member.name) is queue:
                del self._attached[member.name]
            log.info("%s is no longer attached", member.name)

    async def Connect(  # type: ignore[override]
        self, frames: Frames, context: Context
    ) -> None:
        """A searcher's end."""
        try:
            searcher = self._admit(context, "searcher")
            institution = self._called(parse_connect(await self._first(frames)))
            with self._counted(searcher, institution):
                call = Call(searcher.name, institution, self._limits.idle_seconds)
                try:
                    down = await self._accepted(call)
                    call.up.set_result(frames)
                    await call.hand_on(down, context)
                finally:
                    call.up.cancel()  # for an institution that comes as its searcher leaves
        except Exception as error:
            await abort(error, context)

    async def Accept(  # type: ignore[override]
        self, frames: Frames, context: Context
    ) -> None:
        """An institution's end: of a call that was announced to it, and to nobody else."""
        try:
            member = self._admit(context, "institution")
            call = self._waiting.pop(parse_accept(await self._first(frames)), None)
            if call is None or call.institution != member or call.down.done():
                raise Refused(grpc.StatusCode.NOT_FOUND, "nobody waits for this call (any more)")
            call.down.set_result(frames)
            await asyncio.wait([call.up])
            if not call.up.cancelled():
                await call.hand_on(call.up.result(), context)
        except Exception as error:
            await abort(error, context)

    def _admit(self, context: Context, role: Role) -> Member:
        peer: Any = context.auth_context()
        return self._admission.admit(peer, role)

    async def _first(self, frames: Frames) -> pb.RelayFrame:
        try:
            async with asyncio.timeout(self._limits.accept_seconds):
                return await anext(frames)
        except TimeoutError:
            raise Refused(grpc.StatusCode.DEADLINE_EXCEEDED, "no first frame came") from None
        except StopAsyncIteration:
            raise MalformedMessage("relay: the call ended before its first frame") from None

    def _called(self, name: str) -> Member:
        """The institution of this name, if it is a member still. Attached before, it may be not."""
        member = self._admission.roster().named(name)
        if member is None or member.role != "institution":
            raise NotAdmitted(f"{name} is no institution of this federation (any more)")
        return member

    async def _accepted(self, call: Call) -> Frames:
        """Announce a call, and wait for the institution's end of it."""
        name = call.institution.name
        queue = self._attached.get(name)
        if queue is None:
            raise Refused(grpc.StatusCode.UNAVAILABLE, f"{name} is not attached to the relay")
        self._waiting[call.name] = call
        try:
            queue.put_nowait(call)
            async with asyncio.timeout(self._limits.accept_seconds):
                return await call.down
        except (TimeoutError, asyncio.QueueFull):
            raise Refused(
                grpc.StatusCode.UNAVAILABLE, f"{name} is attached, but did not take the call"
            ) from None
        finally:
            self._waiting.pop(call.name, None)

    @contextmanager
    def _counted(self, searcher: Member, institution: Member) -> Iterator[None]:
        """Hold a place for a call. Raises LimitReached where there is none."""
        places: list[tuple[tuple[Role | None, str], int, str]] = [
            ((None, ""), self._limits.calls, "the relay"),
            (("searcher", searcher.name), self._limits.calls_of_searcher, searcher.name),
            (("institution", institution.name), self._limits.calls_to_institution,
             institution.name),
        ]  # fmt: skip
        for key, most, whose in places:
            if self._open[key] >= most:
                raise LimitReached(f"{whose} has {most} calls open, which is the limit")
        self._open.update(key for key, _, _ in places)
        try:
            yield
        finally:
            self._open.subtract(key for key, _, _ in places)
            self._open += Counter()  # drops those that are zero


def _move(limit: asyncio.Timeout, seconds: float) -> None:
    """A timeout that is over already stays as it is."""
    try:
        limit.reschedule(asyncio.get_running_loop().time() + seconds)
    except RuntimeError:
        return
