"""Runs directory, relay and releases until told to stop: gRPC over mutual TLS, no locks."""

import asyncio
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2_grpc  # type: ignore[import-untyped]
from grpc_health.v1.health import aio as health  # type: ignore[import-untyped]

from protocol.admission import Admission
from protocol.blindsight.v1 import directory_pb2_grpc as rpc
from protocol.certificates import Certificate
from protocol.credentials import Credentials
from protocol.directory_wire import MAX_FRAME_BYTES
from protocol.errors import ServiceError
from server.directory.directory import DirectoryServicer
from server.directory.offers import OfferBook
from server.directory.relay import RelayServicer
from server.directory.releases import ReleasesServicer
from server.directory.settings import Limits

_GRACE_SECONDS = 2.0
_WINDOW_BYTES = 512 << 10
# An attached institution is a call as well, and so are both ends of a connection.
_OTHER_CALLS = 4096 + 256


class CoordinatorService:
    """Directory, relay, releases and health on one address. Use within one event loop."""

    def __init__(
        self,
        credentials: Credentials,
        roster: Path,
        offers: Path,
        address: str,
        limits: Limits | None = None,
        releases: Path | None = None,
    ) -> None:
        """Read roster and offers, bind ``address`` (host:port, port 0 for any that is free).

        ``releases`` is the folder of signed releases; without one none are handed out.
        Raises UsageError, MalformedMessage, StorageError, ServiceError for a port that is taken.
        """
        limits = limits or Limits()
        admission = Admission(Certificate.load(credentials.authority), roster)
        book = OfferBook(offers, limits.offer_seconds)
        self._server = grpc.aio.server(
            maximum_concurrent_rpcs=2 * limits.calls + limits.fetches + _OTHER_CALLS,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", MAX_FRAME_BYTES),
                # What a writer may send before its reader takes it: fixed, so that memory is.
                ("grpc.http2.bdp_probe", 0),
                ("grpc.http2.lookahead_bytes", _WINDOW_BYTES),
                # A party that is gone without a word leaves within a minute.
                ("grpc.server_handshake_timeout_ms", 10_000),
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
                ("grpc.http2.max_concurrent_streams", 2 * limits.calls_to_institution + 16),
            ],
        )
        directory = DirectoryServicer(book, admission, limits.offer_seconds)
        rpc.add_DirectoryServicer_to_server(directory, self._server)
        rpc.add_RelayServicer_to_server(RelayServicer(admission, limits), self._server)
        if releases is not None:
            servicer = ReleasesServicer(releases, admission, limits)
            rpc.add_ReleasesServicer_to_server(servicer, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), self._server)
        host = address.rpartition(":")[0]
        try:
            port = self._server.add_secure_port(address, credentials.for_server())
        except RuntimeError as error:
            raise ServiceError(
                f"cannot listen on {address}: the port is in use or the address is not this "
                "machine's",
                "End what uses it, or change directory_port in federation.toml.",
            ) from error
        self.address = f"{host}:{port}"

    async def run(self, stop: asyncio.Event, on_ready: Callable[[str], None]) -> None:
        """Serve until ``stop`` is set; ``on_ready`` gets the address when calls are taken."""
        await self._server.start()
        try:
            on_ready(self.address)
            await stop.wait()
        finally:
            await self._server.stop(_GRACE_SECONDS)


async def serve(make: Callable[[], CoordinatorService], on_ready: Callable[[str], None]) -> None:
    """Run the service that ``make`` gives until SIGTERM or Ctrl-C."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):
            loop.add_signal_handler(number, stop.set)
    await make().run(stop, on_ready)
