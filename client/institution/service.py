"""Runs an institution's service until it is told to stop."""

import json
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import grpc

from client.institution.index import Index
from client.institution.selfcheck import self_check
from client.institution.servicer import RetrievalServicer
from client.institution.settings import ServiceSettings
from protocol.blindsight.v1 import retrieval_pb2_grpc as rpc
from protocol.credentials import Credentials
from protocol.errors import ServiceError
from protocol.grpc_errors import ErrorInterceptor

_WORKERS = 8
_GRACE_SECONDS = 5.0
_MESSAGE_MARGIN = 4096


class Service:
    """A gRPC server on one address; a context manager that stops it at the end."""

    def __init__(self, settings: ServiceSettings) -> None:
        """Open the index and bind the port; raise :class:`ServiceError` if it is taken."""
        index = Index(settings.index)
        self_check(index)
        self._servicer = RetrievalServicer(settings, index)
        # A longer message is refused by gRPC before it is held in memory.
        layout = index.layout
        framing = 64 * (layout.chunks + layout.public_keys)
        limit = layout.upload_bytes + framing + _MESSAGE_MARGIN
        self._server = grpc.server(
            ThreadPoolExecutor(_WORKERS, "serve"),
            interceptors=[ErrorInterceptor()],
            maximum_concurrent_rpcs=4 * _WORKERS,
            options=[
                ("grpc.so_reuseport", 0),
                ("grpc.max_receive_message_length", limit),
                # A question comes in one flight: gRPC's own window of 64 kB takes a dozen.
                ("grpc.http2.lookahead_bytes", limit),
            ],
        )
        rpc.add_RetrievalServicer_to_server(self._servicer, self._server)
        credentials = Credentials.in_folder(settings.credentials).for_server()
        try:
            port = self._server.add_secure_port(f"{settings.host}:{settings.port}", credentials)
        except RuntimeError as error:
            raise ServiceError(
                f"cannot listen on {settings.host}:{settings.port}: the port is in use or the "
                "address is not this machine's",
                "Choose another with --port (0 takes any that is free).",
            ) from error
        self.address = f"{settings.host}:{port}"

    def __enter__(self) -> "Service":
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop(_GRACE_SECONDS).wait()
        self._servicer.close()


def serve(settings: ServiceSettings, while_stdin_is_open: bool = False) -> None:
    """Serve until SIGTERM, Ctrl-C or, if asked, until standard input is closed.

    The address is printed as one JSON line once questions are answered. With
    ``while_stdin_is_open`` a service never outlives the process that started it.
    """
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    if while_stdin_is_open:
        threading.Thread(target=_wait_for_end_of_input, args=(stop,), daemon=True).start()
    with Service(settings) as service:
        print(json.dumps({"address": service.address}), flush=True)
        stop.wait()


def _wait_for_end_of_input(stop: threading.Event) -> None:
    sys.stdin.read()
    stop.set()
