"""The store of embeddings: FAISS's own files of exact indexes (IndexFlatIP), a segment each.

    embeddings-000000.faiss ...   as ``faiss.write_index`` writes them, to the byte
    embeddings.sha256             a line for each, as ``sha256sum`` writes it

All segments but the last hold the same number of rows. One that no change has touched is the same
file in the next epoch, and its line the same line. They are written in pieces and read mapped:
neither side holds all embeddings in its own memory.
"""

import hashlib
import re
import struct
from pathlib import Path
from typing import Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from client.institution.packed import REBUILD
from client.institution.predecessor import Predecessor, share
from protocol.errors import StorageError
from protocol.files import check_file, replace_atomically, write_atomically

SUMS = "embeddings.sha256"
SEGMENT_BYTES = 4 << 20
_MAX_SUMS_BYTES = 64 << 20
_LINE = re.compile(r"([0-9a-f]{64})  (embeddings-[0-9]{6,}\.faiss)")


class Rows(Protocol):
    """Embeddings float32 [n, dim], in memory, mapped or put together as they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, dim)."""

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]:
        """Some of them, float32 [m, dim]."""


def segment_rows(dim: int) -> int:
    """Return the rows of every segment but the last."""
    return max(1, SEGMENT_BYTES // (4 * dim))


class EmbeddingStore:
    """The embeddings of one epoch; every method raises :class:`StorageError` for other files."""

    def __init__(self, folder: Path, items: int, dim: int) -> None:
        self._folder, self.shape = folder, (items, dim)
        self._size = segment_rows(dim)

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        """Rows as they are mapped, or put together where they lie in several segments."""
        start, stop, _ = rows.indices(self.shape[0])
        first, last = start // self._size, max(start, stop - 1) // self._size
        if first == last and start < stop:
            return self._map(first)[start - first * self._size : stop - first * self._size]
        found = np.empty((max(0, stop - start), self.shape[1]), np.float32)
        for number in range(first, last + 1) if start < stop else ():
            at = number * self._size
            low, high = max(start, at), min(stop, at + self._size)
            found[low - start : high - start] = self._map(number)[low - at : high - at]
        return found

    def searchable(self) -> faiss.Index:
        """Return one exact index over all segments, mapped: of a million items none is copied."""
        shards = faiss.IndexShards(self.shape[1])
        for number, path in enumerate(self._paths()):
            self._check(number)
            shards.add_shard(faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC))
        return shards

    def damaged(self, digest: str) -> list[str]:
        """Read everything; return the names of files that are not what ``digest`` stands for."""
        try:
            sums = read_sums(self._folder)
        except (StorageError, OSError):
            return [SUMS]
        names = [path.name for path in self._paths()]
        if _digest(sums) != digest or list(sums) != names:
            return [SUMS]
        return [name for name in names if checksum(self._folder / name) != sums[name]]

    def _paths(self) -> list[Path]:
        return segment_paths(self._folder, self.shape[0], self.shape[1])

    def _rows(self, number: int) -> int:
        return min(self._size, self.shape[0] - number * self._size)

    def _map(self, number: int) -> NDArray[np.float32]:
        start, rows = self._check(number), self._rows(number)
        path = self._folder / segment_name(number)
        return np.memmap(path, np.float32, "r", start, (rows, self.shape[1]))

    def _check(self, number: int) -> int:
        """Return where the rows begin in a file that is FAISS's own: it crashes on others."""
        path, dim = self._folder / segment_name(number), self.shape[1]
        rows = self._rows(number)
        head = _head(rows, dim)
        expected = len(head) + 4 * rows * dim
        try:
            with path.open("rb") as file:
                found, size = file.read(len(head)), path.stat().st_size
        except OSError as error:
            raise StorageError(f"{path} cannot be read: {error.strerror}", REBUILD) from error
        if found != head or size != expected:
            raise StorageError(
                f"{path} is not FAISS's file of {rows} embeddings of width {dim}: "
                f"expected {expected} bytes, got {size}",
                REBUILD,
            )
        return len(head)


def write_store(folder: Path, embeddings: Rows, old: Predecessor | None = None) -> str:
    """Write ``embeddings`` into ``folder``, but for segments that are as they were in ``old``.

    Returns the SHA-256 of ``embeddings.sha256``. Raises :class:`StorageError` for a full disk.
    """
    (items, dim), size = embeddings.shape, segment_rows(embeddings.shape[1])
    known, sums = read_sums(old.folder) if old else {}, dict[str, str]()
    for number, path in enumerate(segment_paths(folder, items, dim)):
        start, stop = number * size, min(items, (number + 1) * size)
        if old and path.name in known and old.keeps(start, stop, size):
            share(old.folder / path.name, path)
            sums[path.name] = known[path.name]
        else:
            sums[path.name] = _write(path, embeddings[start:stop])
    write_atomically(folder / SUMS, _text(sums))
    return _digest(sums)


def read_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each segment by its name; raise :class:`StorageError`, OSError."""
    path, found = folder / SUMS, dict[str, str]()
    check_file(path, _MAX_SUMS_BYTES, REBUILD)
    for line in path.read_text("ascii", "replace").splitlines():
        if not (match := _LINE.fullmatch(line)) or match[2] in found:
            raise StorageError(f"{path}: expected lines of sha256sum, got {line[:80]!r}", REBUILD)
        found[match[2]] = match[1]
    return found


def segment_name(number: int) -> str:
    """Return the name of a segment's file."""
    return f"embeddings-{number:06d}.faiss"


def segment_paths(folder: Path, items: int, dim: int) -> list[Path]:
    """Return where the segments lie in ``folder``, in order."""
    return [folder / segment_name(number) for number in range(-(-items // segment_rows(dim)))]


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal, "" for one that cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _write(path: Path, rows: NDArray[np.float32]) -> str:
    with replace_atomically(path) as file:
        body = np.ascontiguousarray(rows, "<f4").data
        head = _head(*rows.shape)
        file.write(head)
        file.write(body)
    digest = hashlib.sha256(head)
    digest.update(body)
    return digest.hexdigest()


def _text(sums: dict[str, str]) -> str:
    return "".join(f"{digest}  {name}\n" for name, digest in sums.items())


def _digest(sums: dict[str, str]) -> str:
    return hashlib.sha256(_text(sums).encode()).hexdigest()


def _head(items: int, dim: int) -> bytes:
    """Return how FAISS begins the file of a flat index: an empty one differs in two numbers."""
    head = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dim)))
    struct.pack_into("<q", head, 8, items)
    struct.pack_into("<Q", head, len(head) - 8, items * dim)
    return bytes(head)
