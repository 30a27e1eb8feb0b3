"""Runs an institution's service until it is told to stop."""

import json
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from types import FrameType

import grpc
from grpc_health.v1 import (  # type: ignore[import-untyped]
    health,
    health_pb2,
    health_pb2_grpc,
)

from client.institution.servicer import RetrievalServicer
from client.institution.serving.books import Books
from client.institution.serving.decoding import DecodingInterceptor
from client.institution.serving.gate import Gate, OpenGate, RosterGate
from client.institution.serving.json_log import to_stderr
from client.institution.serving.ledger import Ledger
from client.institution.serving.metrics import Metrics
from client.institution.serving.served import Served
from client.institution.serving.turnstile import Turnstile
from client.institution.settings import ServiceSettings
from protocol.blindsight.v1 import retrieval_pb2
from protocol.blindsight.v1 import retrieval_pb2_grpc as rpc
from protocol.credentials import Credentials
from protocol.errors import ServiceError
from protocol.grpc_errors import ErrorInterceptor
from protocol.provisioning.home import Home

_SPARE = 8
"""Threads beyond the calls that are let in: to refuse others, and for health."""

_GRACE_SECONDS = 5.0
_HANDSHAKE_MS = 10_000
_MESSAGE_MARGIN = 4096
_NAME = retrieval_pb2.DESCRIPTOR.services_by_name["Retrieval"].full_name


class Service:
    """A gRPC server on one address; a context manager that stops it at the end."""

    def __init__(self, settings: ServiceSettings) -> None:
        """Open the index and bind the port; raise :class:`ServiceError` if it is taken."""
        self._settings, self._exits = settings, ExitStack()
        served = Served(settings)
        self.metrics = Metrics(settings.metrics_port)
        self._books: Books | None = None
        gate = self._gate()
        self._servicer = RetrievalServicer(
            served,
            gate,
            Turnstile(settings.each, settings.most),
            self.metrics,
            self._books,
            settings.seconds,
        )
        self._exits.callback(self._servicer.close)
        workers = settings.most + _SPARE
        limit = served.longest + _MESSAGE_MARGIN
        self._server = grpc.server(
            ThreadPoolExecutor(workers, "serve"),
            interceptors=[ErrorInterceptor(), DecodingInterceptor()],
            # Beyond the threads nobody waits in memory: gRPC answers RESOURCE_EXHAUSTED itself.
            maximum_concurrent_rpcs=workers,
            options=[
                ("grpc.so_reuseport", 0),
                # A longer message is refused by gRPC before it is held in memory.
                ("grpc.max_receive_message_length", limit),
                # A question comes in one flight: gRPC's own window of 64 kB takes a dozen.
                ("grpc.http2.lookahead_bytes", limit),
                ("grpc.max_concurrent_streams", workers),
                # In all: of whom they are gRPC for Python knows at a call, not before.
                ("grpc.max_allowed_incoming_connections", settings.connections),
                # Half-open connections and idle ones are closed.
                ("grpc.server_handshake_timeout_ms", _HANDSHAKE_MS),
                ("grpc.keepalive_time_ms", 60_000),
                ("grpc.keepalive_timeout_ms", 20_000),
                ("grpc.max_connection_idle_ms", 600_000),
            ],
        )
        rpc.add_RetrievalServicer_to_server(self._servicer, self._server)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            from grpc_reflection.v1alpha import reflection  # type: ignore[import-untyped]

            names = (_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._server)
        credentials = Credentials.in_folder(settings.credentials).for_server()
        try:
            port = self._server.add_secure_port(f"{settings.host}:{settings.port}", credentials)
        except RuntimeError as error:
            self._exits.close()
            raise ServiceError(
                f"cannot listen on {settings.host}:{settings.port}: the port is in use or the "
                "address is not this machine's",
                "Choose another with --port (0 takes any that is free).",
            ) from error
        self.address = f"{settings.host}:{port}"

    def __enter__(self) -> "Service":
        self._exits.enter_context(self.metrics)
        self._server.start()
        for name in ("", _NAME):
            self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        return self

    def __exit__(self, *_: object) -> None:
        """Take no more questions, answer those that are under way, then stop."""
        self._health.enter_graceful_shutdown()
        self._server.stop(_GRACE_SECONDS).wait()
        self._exits.close()

    def _gate(self) -> Gate:
        settings = self._settings
        if settings.home is None:
            authority = Credentials.in_folder(settings.credentials).authority
            return OpenGate(authority, settings.release)
        home = Home(settings.home)
        gate = RosterGate(home, self._policy_changed)
        self._books = Books(Ledger(settings.home / "ledger.sqlite"), home.audit)
        return gate

    def _policy_changed(self, problem: str) -> None:
        self.metrics.policy_ok.set(not problem)
        if self._books:
            self._books.note("policy", accepted=not problem, problem=problem[:500])


def serve(settings: ServiceSettings, while_stdin_is_open: bool = False) -> None:
    """Serve until SIGTERM, Ctrl-C or, if asked, until standard input is closed.

    The address is printed as one JSON line once questions are answered. With
    ``while_stdin_is_open`` a service never outlives the process that started it.
    """
    to_stderr()
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    if while_stdin_is_open:
        threading.Thread(target=_wait_for_end_of_input, args=(stop,), daemon=True).start()
    with Service(settings) as service:
        said: dict[str, object] = {"address": service.address}
        if service.metrics.port is not None:
            said["metrics"] = f"127.0.0.1:{service.metrics.port}"
        print(json.dumps(said), flush=True)
        stop.wait()


def _wait_for_end_of_input(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()
