"""The page as a server: on 127.0.0.1 alone, until somebody ends it."""

import signal
import socket
import threading
import webbrowser
from collections.abc import Callable
from types import FrameType
from typing import Self

import uvicorn

from client.searcher.searcher import Searcher
from client.searcher.ui.app import make_app
from client.searcher.ui.door import Door
from client.searcher.ui.session import Session
from protocol.errors import ServiceError

_GRACE_SECONDS = 1


class PageServer:
    """Serves the page for one person while the block runs."""

    def __init__(self, searcher: Searcher, port: int = 0, listed: bool = False) -> None:
        """Take a port; 0 is any that is free. Raises ServiceError if it is taken.

        ``listed`` says that the coordinator was asked whom one can search.
        """
        self._searcher = searcher
        try:
            self._socket = socket.create_server(("127.0.0.1", port))
        except OSError as error:
            raise ServiceError(
                f"cannot listen on 127.0.0.1:{port}: {error.strerror}",
                "Choose another with --port (0 takes any that is free).",
            ) from error
        door = Door(make_app(Session(searcher, listed)), self._socket.getsockname()[1])
        self.address = door.address
        """Opens the page, once."""
        # No access log: it would hold what was looked at. h11: checks lengths in Python.
        config = uvicorn.Config(
            door,
            http="h11",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
        self._server = uvicorn.Server(config)
        serve = self._server.run
        self._thread = threading.Thread(target=serve, args=([self._socket],), name="page")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End searches that are under way, and with them the searcher; then the server."""
        self._searcher.close()
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def serve(
    searcher: Searcher, port: int, listed: bool, browser: bool, ready: Callable[[str], None]
) -> None:
    """Serve until SIGTERM or Ctrl-C; ``ready`` is told the address that opens the page."""
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    with PageServer(searcher, port, listed) as server:
        ready(server.address)
        if browser:
            webbrowser.open(server.address)
        stop.wait()
