"""Fetches releases from the coordinator, for institutions and searchers alike."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.blindsight.v1 import directory_pb2_grpc as rpc
from protocol.credentials import Credentials
from protocol.errors import ServiceError, StorageError
from protocol.files import open_exclusively, storage_error
from protocol.grpc_errors import error_from_rpc
from protocol.model.delivery import Delivery
from protocol.model.release import Release
from protocol.model.release_wire import parse_latest, parse_release_id
from protocol.model.signature import read_signed_release
from protocol.pipe import coordinator_channel
from protocol.roster import Roster
from protocol.terminal import progress

_CALL_SECONDS = 20.0
#: So long the coordinator may send nothing.
_IDLE_SECONDS = 60.0
_LOCK = "fetching.lock"


def fetch_release(
    address: str,
    credentials: Credentials,
    roster: Roster,
    root: Path,
    release_id: str | None = None,
) -> Release:
    """Have a release in ``root``/release_id that a coordinator of ``roster`` signed.

    ``address`` is host:port of the coordinator's directory; ``release_id`` None stands for its
    newest release. One that is there already and passes every check is not fetched again, and if
    it was named, nobody is asked. Raises ServiceError if the coordinator does not answer or has
    released nothing, ReleaseMismatch if it has no such release, MalformedMessage for whatever is
    not as signed and announced, StorageError if it cannot be written. Nothing is left behind then.
    """
    if release_id is not None and (found := _present(root / parse_release_id(release_id), roster)):
        return found
    who = f"the coordinator {address}"
    with coordinator_channel(address, credentials) as channel:
        stub = rpc.ReleasesStub(channel)
        if release_id is None:
            release_id = _latest(stub, who)
            if found := _present(root / release_id, roster):
                return found
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            with (
                open_exclusively(root / _LOCK),
                Delivery(address, roster, root, release_id) as delivery,
            ):
                request = pb.FetchReleaseRequest(release_id=release_id)
                with _pieces(stub.Fetch(request), who) as pieces:
                    total = delivery.announce(next(pieces, pb.ReleasePiece()))
                    with progress(f"fetching release {release_id}", total) as show:
                        delivery.take(pieces, show)
                return delivery.publish()
        except OSError as error:
            raise storage_error(root / release_id, error) from error


def _latest(stub: rpc.ReleasesStub, who: str) -> str:
    try:
        found = parse_latest(stub.Latest(pb.LatestRequest(), timeout=_CALL_SECONDS))
    except grpc.RpcError as error:
        raise error_from_rpc(error, who) from error
    if found is None:
        raise ServiceError(f"{who} has released no model yet", "Ask again after training.")
    return found


def _present(path: Path, roster: Roster) -> Release | None:
    """The release that is there, if it is one that may be used."""
    try:
        found = read_signed_release(path, roster)
    except StorageError:
        return None
    return found if found.release_id == path.name else None


@contextmanager
def _pieces(call: Any, who: str) -> Iterator[Iterator[pb.ReleasePiece]]:
    """What comes of ``call``, which ends with the block, or when nothing comes for long.

    A stream of unknown length has no deadline as a whole.
    """
    came, over = [0], threading.Event()

    def watch() -> None:
        before = -1
        while not over.wait(_IDLE_SECONDS):
            if came[0] == before:
                call.cancel()
            before = came[0]

    def pieces() -> Iterator[pb.ReleasePiece]:
        try:
            for piece in call:
                came[0] += 1
                yield piece
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.CANCELLED:
                raise ServiceError(
                    f"{who} has sent nothing for {_IDLE_SECONDS:g} seconds", "Try again."
                ) from error
            raise error_from_rpc(error, who) from error

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield pieces()
    finally:
        over.set()
        call.cancel()
