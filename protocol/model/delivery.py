"""A release as it comes from the coordinator, piece by piece: checked before it is written.

The manifest and its signature come first. Nothing is on disk before a coordinator of the roster has
signed them and they are of the release that was asked for; then as many bytes as they say, in
ROOT/.fetching, which takes its name when every hash is right.
"""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from protocol.blindsight.v1 import directory_pb2 as pb
from protocol.errors import MalformedMessage, StorageError
from protocol.files import sync_folder
from protocol.model.release import MANIFEST, MODEL, TOKENIZER, Release
from protocol.model.release_wire import ReleaseHead, parse_piece
from protocol.model.signature import SIGNATURE, parse_signed
from protocol.roster import Roster

_FETCHING = ".fetching"


class Delivery:
    """One release on its way to ``root``/release_id; a context manager that leaves nothing else.

    One process at a time may have one in a ``root``. What a killed one left goes with the next.
    """

    def __init__(self, sender: str, roster: Roster, root: Path, release_id: str) -> None:
        """``sender`` stands in messages; ``roster`` says who may sign."""
        self._sender, self._roster = sender, roster
        self._path, self._temporary = root / release_id, root / _FETCHING

    def __enter__(self) -> Self:
        self._clear()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._clear()

    def announce(self, first: pb.ReleasePiece) -> int:
        """Take the first piece; return how many bytes of files follow.

        Raises MalformedMessage unless a coordinator signed it and it is of the right release.
        """
        head = ReleaseHead.from_message(first)
        try:
            # Named in messages by where it comes from: nothing is on disk yet.
            where = Path(self._sender) / self._path.name
            release = parse_signed(where, head.manifest, head.signature, self._roster)
        except StorageError as error:
            raise MalformedMessage(error.message, error.hint) from error
        if release.release_id != self._path.name:
            raise self._wrong(f"release {release.release_id}")
        if bool(head.tokenizer_bytes) != bool(release.settings.tokenizer):
            raise self._wrong(f"a tokenizer of {head.tokenizer_bytes:,} bytes")
        self._head, self._release = head, replace(release, path=self._path)
        return head.tokenizer_bytes + release.size

    def take(self, pieces: Iterator[pb.ReleasePiece], show: Callable[[int], None]) -> None:
        """Write the pieces that follow; ``show`` is told of the bytes so far.

        Raises MalformedMessage for more or fewer bytes than were announced, or for others than
        were signed.
        """
        self._temporary.mkdir(mode=0o700)
        release, tokenizer, came = self._release, self._head.tokenizer_bytes, 0
        files = [(MODEL, release.size, release.sha256)]
        if tokenizer:
            files.insert(0, (TOKENIZER, tokenizer, release.settings.tokenizer))
        for name, size, sha256 in files:
            due, hashed = size, hashlib.sha256()
            with (self._temporary / name).open("xb") as file:
                while due:
                    if (piece := next(pieces, None)) is None:
                        raise self._wrong(f"{size - due:,} of {size:,} bytes of {name}")
                    content = parse_piece(piece, due)
                    hashed.update(content)
                    file.write(content)
                    due, came = due - len(content), came + len(content)
                    show(came)
            if hashed.hexdigest() != sha256:
                raise self._wrong(f"a {name} with another SHA-256")
        if next(pieces, None) is not None:
            raise self._wrong(f"more than the {came:,} bytes that were announced")

    def publish(self) -> Release:
        """Give it its name, once it is on disk. Raises OSError."""
        (self._temporary / SIGNATURE).write_bytes(self._head.signature)
        (self._temporary / MANIFEST).write_bytes(self._head.manifest)
        for path in self._temporary.iterdir():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(self._temporary)
        # What is there did not pass its checks. A crash before the next line leaves none.
        shutil.rmtree(self._path, ignore_errors=True)
        self._temporary.rename(self._path)
        sync_folder(self._path.parent)
        return self._release

    def _clear(self) -> None:
        shutil.rmtree(self._temporary, ignore_errors=True)

    def _wrong(self, got: str) -> MalformedMessage:
        return MalformedMessage(
            f"{self._sender}: expected release {self._path.name} as it was signed, got {got}",
            "Try again; if it stays so, tell the coordinator.",
        )
