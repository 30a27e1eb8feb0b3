"""A way to one institution through the relay: a socket on this machine that gRPC can dial.

A socket in a folder of this user's own, mode 0700, and not a port on loopback: nobody else on this
machine can ask the relay under this searcher's name. Each connection to it is one call to the
relay. What passes is TLS between searcher and institution, which the relay has no key of; if it
alters, drops, repeats or reorders bytes, that TLS fails and the question with it.
"""

import shutil
import socket
import tempfile
import threading
from contextlib import suppress
from pathlib import Path

import grpc

from protocol.blindsight.v1 import directory_pb2_grpc as rpc
from protocol.credentials import Credentials
from protocol.directory_wire import connect_frame
from protocol.errors import BlindsightError
from protocol.grpc_errors import error_from_rpc
from protocol.pipe import carry, coordinator_channel, hang_up


class Tunnel:
    """Listens at ``address`` until it is closed."""

    def __init__(self, coordinator: str, institution: str, credentials: Credentials) -> None:
        """Listen; the relay at ``coordinator`` (host:port) is dialled when somebody connects."""
        self._coordinator, self._institution = coordinator, institution
        self._channel = coordinator_channel(coordinator, credentials)
        self._stub = rpc.RelayStub(self._channel)
        self._problem = ""
        self._folder = Path(tempfile.mkdtemp(prefix="blindsight-"))
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self._folder / "relay"))
        self._listener.listen(4)
        self.address = f"unix:{self._folder / 'relay'}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __str__(self) -> str:
        """Names the relay, and what it said last if that was a refusal; for messages."""
        said = f": {self._problem}" if self._problem else ""
        return f"by the relay {self._coordinator}{said}"

    def close(self) -> None:
        """End it, and what still passes."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept
        self._listener.close()
        self._channel.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _accept(self) -> None:
        while True:
            try:
                local, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._carry, args=(local,), daemon=True).start()

    def _carry(self, local: socket.socket) -> None:
        self._problem = ""
        try:
            carry(local, self._stub.Connect, connect_frame(self._institution))
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.CANCELLED:
                self._problem = error_from_rpc(error, "it").message
        except BlindsightError as error:
            self._problem = error.message
        except ValueError:  # gRPC's word for a channel that was closed
            return
        finally:
            hang_up(local)  # after the reason is known to whoever finds it closed
