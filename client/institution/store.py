"""The store of embeddings: FAISS's own file of an exact index (IndexFlatIP).

It is written in pieces and read mapped: neither side holds all embeddings in its own memory.
"""

import struct
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from client.institution.packed import REBUILD
from protocol.errors import StorageError
from protocol.files import replace_atomically

_ROWS = 4096


def write_store(path: Path, embeddings: NDArray[np.float32]) -> None:
    """Write float32 [n, dim] to the byte as ``faiss.write_index`` does, but without a copy of all.

    Raises :class:`StorageError` for a full disk.
    """
    with replace_atomically(path) as file:
        file.write(_head(*embeddings.shape))
        for start in range(0, len(embeddings), _ROWS):
            file.write(np.ascontiguousarray(embeddings[start : start + _ROWS], "<f4").data)


def open_store(path: Path, items: int, dim: int) -> faiss.Index:
    """Map ``items`` embeddings of width ``dim``; raise :class:`StorageError` if they differ."""
    _check(path, items, dim)
    # Mapped: a service of a million items has no gigabyte of embeddings in its own memory.
    return faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)


def map_embeddings(path: Path, items: int, dim: int) -> NDArray[np.float32]:
    """Map the embeddings themselves, float32 [items, dim]; raise as :func:`open_store` does."""
    start = _check(path, items, dim)
    return np.memmap(path, np.float32, "r", start, (items, dim))


def _check(path: Path, items: int, dim: int) -> int:
    """Return where the embeddings begin in a file that is FAISS's own: it crashes on others."""
    head = _head(items, dim)
    expected = len(head) + 4 * items * dim
    try:
        with path.open("rb") as file:
            found, size = file.read(len(head)), path.stat().st_size
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", REBUILD) from error
    if found != head or size != expected:
        raise StorageError(
            f"{path} is not FAISS's file of {items} embeddings of width {dim}: "
            f"expected {expected} bytes, got {size}",
            REBUILD,
        )
    return len(head)


def _head(items: int, dim: int) -> bytes:
    """Return how FAISS begins the file of a flat index: an empty one differs in two numbers."""
    head = bytearray(faiss.serialize_index(faiss.IndexFlatIP(dim)))
    struct.pack_into("<q", head, 8, items)
    struct.pack_into("<Q", head, len(head) - 8, items * dim)
    return bytes(head)
