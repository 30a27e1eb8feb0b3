"""Embeddings as they are made, kept until they are in an epoch: what was killed is not repeated.

    head     magic, then JSON in one line: release, precision, dim
    records  SHA-256 of an image's bytes, its embedding float32 [dim], CRC-32 of both

Records are only ever appended. One that was cut off by a crash ends what is read, and goes.
"""

import hashlib
import json
import os
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from protocol.files import storage_error

NAME = "embedded.journal"
_MAGIC = b"blindsight embeddings 1\n"
_KEY = hashlib.sha256().digest_size


class EmbeddingJournal:
    """The embeddings of one release in one precision; another one's are thrown away.

    Whoever opens it holds the index's lock. Raises :class:`StorageError` for a full disk.
    """

    def __init__(self, root: Path, release_id: str, precision: str, dim: int) -> None:
        self._path, self._dim = root / NAME, dim
        said = {"release": release_id, "precision": precision, "dim": dim}
        self._head = _MAGIC + json.dumps(said).encode() + b"\n"
        self._step = _KEY + 4 * dim + 4
        self._places: dict[bytes, int] = {}
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._file = os.fdopen(os.open(self._path, flags, 0o600), "a+b")
            self._read()
        except OSError as error:
            raise storage_error(self._path, error) from error

    def __contains__(self, sha256: str) -> bool:
        return bytes.fromhex(sha256) in self._places

    def row(self, sha256: str) -> NDArray[np.float32]:
        """Return the embedding float32 [dim] of an image whose bytes have this SHA-256."""
        place = self._places[bytes.fromhex(sha256)]
        return np.frombuffer(os.pread(self._file.fileno(), 4 * self._dim, place), "<f4")

    def add(self, sha256s: Sequence[str], rows: NDArray[np.float32]) -> None:
        """Append embeddings float32 [n, dim] and wait until they are on disk."""
        try:
            place = self._file.seek(0, os.SEEK_END)
            for sha256, row in zip(sha256s, rows, strict=True):
                key = bytes.fromhex(sha256)
                body = key + np.asarray(row, "<f4").tobytes()
                self._file.write(body + zlib.crc32(body).to_bytes(4, "little"))
                self._places[key] = place + _KEY
                place += self._step
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise storage_error(self._path, error) from error

    def close(self) -> None:
        """Close the file and leave it for a later run."""
        self._file.close()

    def _read(self) -> None:
        size, step = len(self._head), self._step
        if os.pread(self._file.fileno(), size, 0) == self._head:
            self._file.seek(size)
            while len(body := self._file.read(step)) == step:
                if zlib.crc32(body[:-4]) != int.from_bytes(body[-4:], "little"):
                    break
                self._places[body[:_KEY]] = size + _KEY
                size += step
            self._file.truncate(size)
        else:
            self._file.truncate(0)
            self._file.write(self._head)
            self._file.flush()


def delete_journal(root: Path) -> None:
    """Delete it once its embeddings are in an epoch: none of a removed image stays behind."""
    (root / NAME).unlink(missing_ok=True)
