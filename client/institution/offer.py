"""What an institution lets be known of itself: registered with the directory, again and again."""

import threading
from collections.abc import Callable

import grpc

from client.institution.index import Index
from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.blindsight.v1 import directory_pb2_grpc as rpc
from protocol.certificates import Certificate
from protocol.credentials import Credentials
from protocol.directory_wire import Offer
from protocol.errors import BlindsightError
from protocol.grpc_errors import error_from_rpc
from protocol.pipe import coordinator_channel
from protocol.terminal import say

RENEW_SECONDS = 240.0
_RETRY_SECONDS = 15.0
_CALL_SECONDS = 20.0


def make_offer(
    name: str, index: Index, credentials: Credentials, address: str, round_to: int
) -> Offer:
    """The offer of an index: how many items only to the ``round_to`` below, so that one more or
    less does not show. ``address`` is host:port, or "" for the relay. Raises UsageError.
    """
    items = index.manifest.items // round_to * round_to
    certificate = Certificate.load(credentials.certificate).pem
    return Offer(name, index.manifest.release_id, items, address, certificate)


def register(channel: grpc.Channel, offer: Offer) -> float:
    """Register an offer; return the seconds for which it stands. Raises BlindsightError."""
    try:
        request = pb.RegisterRequest(offer=offer.to_message())
        return float(rpc.DirectoryStub(channel).Register(request, timeout=_CALL_SECONDS).seconds)
    except grpc.RpcError as error:
        raise error_from_rpc(error, "the coordinator's directory") from error


def keep_registered(
    coordinator: str,
    credentials: Credentials,
    offer: Callable[[], Offer],
    stop: threading.Event,
) -> None:
    """Register what ``offer`` makes, now and every few minutes, until ``stop`` is set.

    Files are read anew each time: another epoch or a renewed certificate needs no restart.
    """
    said: str | None = None
    while not stop.is_set():
        try:
            with coordinator_channel(coordinator, credentials) as channel:
                wait, problem = min(RENEW_SECONDS, register(channel, offer()) / 3), ""
        except BlindsightError as error:
            wait, problem = _RETRY_SECONDS, error.message
        if problem != said:
            say(f"directory {coordinator}: {problem or 'registered'}")
        said = problem
        stop.wait(max(wait, 1.0))
