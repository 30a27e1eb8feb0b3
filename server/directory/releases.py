"""Hands out the signed releases of the coordinator's folder, in pieces, to members alone.

What a caller names is an id of sixteen hexadecimal digits, never a path, and the files are those of
a release. One piece of each call is in memory, and the next is read when gRPC has sent it: a reader
that stops holds that and HTTP/2's window, until its time is over.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import grpc

from protocol.admission import Admission
from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.blindsight.v1 import directory_pb2_grpc as rpc
from protocol.errors import LimitReached, ReleaseMismatch, StorageError
from protocol.model.release import MANIFEST, MODEL, TOKENIZER, read_file
from protocol.model.release_wire import PIECE_BYTES, ReleaseHead, parse_release_id
from protocol.model.signature import SIGNATURE, SIGNATURE_BYTES, parse_signed, signed_releases
from protocol.roster import Roster
from server.directory.answering import Context, Refused, abort
from server.directory.settings import Limits

log = logging.getLogger(__name__)


class ReleasesServicer(rpc.ReleasesServicer):
    """Serves the folder ``root``, in which each release has a folder of its id."""

    def __init__(self, root: Path, admission: Admission, limits: Limits) -> None:
        self._root, self._admission, self._limits = root, admission, limits
        self._open: Counter[str] = Counter()

    async def Latest(self, request: pb.LatestRequest, context: Context) -> pb.LatestResponse:
        """Name the newest release by its manifest, of those that a coordinator has signed."""
        try:
            with self._counted(context):
                roster = self._admission.roster()
                found = await asyncio.to_thread(signed_releases, self._root, roster)
            return pb.LatestResponse(release_id=found[0].release_id if found else "")
        except Exception as error:
            await abort(error, context)

    async def Fetch(  # type: ignore[override]  # the stubs know threads
        self, request: pb.FetchReleaseRequest, context: Context
    ) -> None:
        """Stream one release."""
        try:
            with self._counted(context):
                path = self._root / parse_release_id(request.release_id)
                with _Parcel(path, self._admission.roster()) as parcel:
                    await self._send(parcel, context)
        except Exception as error:
            await abort(error, context)

    async def _send(self, parcel: "_Parcel", context: Context) -> None:
        seconds, now = self._limits.idle_seconds, asyncio.get_running_loop().time
        try:
            async with asyncio.timeout(seconds) as limit:
                await context.write(parcel.head.to_message())
                for file in parcel.files:
                    while content := await asyncio.to_thread(file.read, PIECE_BYTES):
                        await context.write(pb.ReleasePiece(payload=content))
                        limit.reschedule(now() + seconds)
        except TimeoutError:
            raise Refused(
                grpc.StatusCode.DEADLINE_EXCEEDED, f"nothing was read for {seconds:g} seconds"
            ) from None

    @contextmanager
    def _counted(self, context: Context) -> Iterator[None]:
        """Admit a member and hold its place. Raises NotAdmitted, LimitReached."""
        peer: Any = context.auth_context()
        name = self._admission.admit(peer, "institution", "searcher").name
        if self._open[name] >= self._limits.fetches_of_member:
            most = self._limits.fetches_of_member
            raise LimitReached(f"{name} fetches {most} releases already, which is the limit")
        if self._open.total() >= self._limits.fetches:
            most = self._limits.fetches
            raise LimitReached(f"{most} releases are being fetched, which is the limit")
        self._open[name] += 1
        try:
            yield
        finally:
            self._open[name] -= 1
            self._open += Counter()  # drops those that are zero


class _Parcel:
    """One release, its files opened and as long as they should be; a context manager."""

    def __init__(self, path: Path, roster: Roster) -> None:
        """Raise ReleaseMismatch for what is not handed out, StorageError for a damaged file."""
        try:
            manifest = read_file(path / MANIFEST, None, None)
            signature = read_file(path / SIGNATURE, None, None, SIGNATURE_BYTES)
            release = parse_signed(path, manifest, signature, roster)
        except StorageError as error:
            log.info("not handed out: %s", error.message)
            raise ReleaseMismatch(f"the coordinator has no release {path.name}") from error
        names = [TOKENIZER] if release.settings.tokenizer else []
        with ExitStack() as stack:
            self.files: list[BinaryIO] = [
                stack.enter_context((path / name).open("rb")) for name in (*names, MODEL)
            ]
            *tokenizer, size = [file.seek(0, 2) for file in self.files]
            if size != release.size:
                raise StorageError(f"{path / MODEL}: expected {release.size:,} bytes, got {size:,}")
            for file in self.files:
                file.seek(0)
            self.head = ReleaseHead(manifest, signature, sum(tokenizer))
            self._exits = stack.pop_all()

    def __enter__(self) -> "_Parcel":
        return self

    def __exit__(self, *_: object) -> None:
        self._exits.close()
