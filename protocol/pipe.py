"""Carries one local connection's bytes through the relay: the same at a searcher and at home.

What passes are TLS records of a connection between searcher and institution, whose keys neither the
relay nor this file has. A frame that is dropped, altered, repeated or moved breaks that connection.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import grpc

from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.credentials import Credentials
from protocol.directory_wire import FRAME_BYTES, MAX_FRAME_BYTES, parse_payload
from protocol.hosts import member_host

COORDINATOR = member_host("coordinator")
# After so long without its end a call is cut: the other side, or the relay, has forgotten it.
_END_SECONDS = 10.0
_KEEPALIVE = (
    # A firewall forgets a connection that is silent, and a dead relay says nothing.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)


def coordinator_channel(
    address: str, credentials: Credentials, longest: int = MAX_FRAME_BYTES
) -> grpc.Channel:
    """A connection to the coordinator, which TLS holds to its own certificate, whatever the host.

    A message of more than ``longest`` bytes is refused unread.
    """
    options = [
        ("grpc.ssl_target_name_override", COORDINATOR),
        ("grpc.max_receive_message_length", longest),
        ("grpc.max_reconnect_backoff_ms", 60_000),
        *_KEEPALIVE,
    ]
    return grpc.secure_channel(address, credentials.for_client(), options)


def carry(
    local: socket.socket, method: Callable[[Iterator[pb.RelayFrame]], Any], first: pb.RelayFrame
) -> None:
    """Carry bytes both ways until either side ends; the call is ended then, and ``hang_up`` is due.

    ``method`` is Accept or Connect of a stub. Each direction waits for whoever takes its bytes, so
    a slow reader costs two frames of memory here. Raises grpc.RpcError when the call fails, and
    MalformedMessage for frames that are none.
    """
    opened = threading.Event()

    def frames() -> Iterator[pb.RelayFrame]:
        yield first
        with suppress(OSError):
            while content := local.recv(FRAME_BYTES):
                yield pb.RelayFrame(payload=content)
        opened.wait()
        cut = threading.Timer(_END_SECONDS, call.cancel)
        cut.daemon = True
        cut.start()

    call = method(frames())
    opened.set()
    try:
        for frame in call:
            local.sendall(parse_payload(frame))
    except OSError:
        return  # whoever had the local connection is gone
    finally:
        call.cancel()


def hang_up(local: socket.socket) -> None:
    """Close a connection, and wake whoever waits for bytes of it."""
    with suppress(OSError):
        local.shutdown(socket.SHUT_RDWR)
    local.close()
