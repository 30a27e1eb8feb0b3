"""An institution behind a firewall: it dials the relay, and is asked through that.

One stream stays open on which the relay tells of calls. For each one a stream beside it, over the
same connection, is joined to a connection to this institution's own service. The service speaks TLS
with the searcher as if it had been dialled: its policy and its ledger see the searcher's
certificate. The relay can tell of calls that nobody makes: each costs a connection to the service,
which ends when no TLS handshake follows, and there are ``MOST_CALLS`` at most.
"""

import random
import socket
import threading
from contextlib import suppress

import grpc

from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.blindsight.v1 import directory_pb2_grpc as rpc
from protocol.credentials import Credentials
from protocol.directory_wire import ATTACHED, accept_frame, parse_call
from protocol.errors import BlindsightError, MalformedMessage
from protocol.grpc_errors import error_from_rpc
from protocol.pipe import carry, coordinator_channel, hang_up
from protocol.terminal import say

MOST_CALLS = 64
MOST_WAIT_SECONDS = 60.0
_DIAL_SECONDS = 5.0


class RelayLink:
    """Attaches ``service`` (host and port) to the relay at ``coordinator`` (host:port)."""

    def __init__(
        self, coordinator: str, credentials: Credentials, service: tuple[str, int]
    ) -> None:
        self._coordinator, self._credentials, self._service = coordinator, credentials, service
        self._places = threading.BoundedSemaphore(MOST_CALLS)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._told: grpc.Call | None = None
        self.attached = False
        """Whether the relay knows this institution now."""

    def keep(self) -> None:
        """Stay attached until ``close``: after a failure again, after 1 s, then 2, up to 60."""
        wait = 1.0
        while not self._stop.is_set():
            try:
                self._attach()
                problem = "the relay ended the stream"
            except BlindsightError as error:
                problem = error.message
            except _WasAttached as error:
                wait, problem = 1.0, str(error)
            if not self._stop.is_set():
                say(f"relay {self._coordinator}: {problem}; trying again")
            # Not all institutions at once, when a relay comes back.
            self._stop.wait(wait * random.uniform(0.5, 1.0))  # noqa: S311
            wait = min(2 * wait, MOST_WAIT_SECONDS)

    def close(self) -> None:
        """End the stream, and with it the calls."""
        self._stop.set()
        with self._lock:
            if self._told is not None:
                self._told.cancel()

    def _attach(self) -> None:
        """Attach once, until it fails. Raises BlindsightError, or _WasAttached if it had worked."""
        with coordinator_channel(self._coordinator, self._credentials) as channel:
            stub = rpc.RelayStub(channel)
            told = stub.Attach(pb.AttachRequest())
            with self._lock:
                self._told = told
                if self._stop.is_set():
                    told.cancel()
            try:
                self.attached = ATTACHED in dict(told.initial_metadata())
                if self.attached:
                    say(f"relay {self._coordinator}: attached")
                for incoming in told:
                    self._take(stub, parse_call(incoming.call))
            except (grpc.RpcError, MalformedMessage) as error:
                known = (
                    error_from_rpc(error, "the relay")
                    if isinstance(error, grpc.RpcError)
                    else error
                )
                if self.attached:
                    raise _WasAttached(known.message) from error
                raise known from error
            finally:
                self.attached = False

    def _take(self, stub: rpc.RelayStub, call: bytes) -> None:
        if not self._places.acquire(blocking=False):
            return  # whoever calls is told that nobody came
        thread = threading.Thread(target=self._serve, args=(stub, call), daemon=True)
        thread.start()

    def _serve(self, stub: rpc.RelayStub, call: bytes) -> None:
        try:
            local = socket.create_connection(self._service, _DIAL_SECONDS)
            try:
                local.settimeout(None)
                local.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                # The searcher is told by its own end.
                with suppress(grpc.RpcError, MalformedMessage, ValueError):
                    carry(local, stub.Accept, accept_frame(call))
            finally:
                hang_up(local)
        except OSError as error:
            say(f"relay {self._coordinator}: a call came, and the service does not answer: {error}")
        finally:
            self._places.release()


class _WasAttached(Exception):
    """It worked for a while: the next attempt may come soon."""
