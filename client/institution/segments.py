"""The packed form in segments: whole packed files, mapped as if they were one.

    packed-000000.bin, packed-000001.bin, ...   each as ``packed.py`` says, of its own items

All segments but the last hold the same number of blocks. One whose embeddings are those of the
epoch before is the same file under a second name (a hard link), so that other items re-pack only
the segments that they touch, and no epoch has an embedding that is not its own.
"""

import ctypes
import hashlib
import mmap
import os
from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np

from client.institution.blocks import block_shape
from client.institution.packed import REBUILD, PackedIndex, write_packed
from client.institution.packed_header import PAGE, Header
from client.institution.predecessor import Predecessor, share
from client.institution.store import Rows
from protocol.errors import StorageError, UsageError
from protocol.files import storage_error, sync_folder
from protocol.ntt import U32
from protocol.packing import Layout

SEGMENT_BYTES = 1 << 20
"""Records of a segment, at least one: small, so that a change costs little."""

_MAP_FIXED = 0x10  # Linux; Python's mmap does not name it


def segment_items(layout: Layout) -> int:
    """Return the items of every segment but the last."""
    return layout.block_items * max(1, SEGMENT_BYTES // (4 * prod(block_shape(layout))))


def segment_paths(folder: Path, layout: Layout) -> list[Path]:
    """Return where the segments of ``layout`` lie in ``folder``, in order."""
    count = -(-layout.items // segment_items(layout))
    return [folder / f"packed-{number:06d}.bin" for number in range(count)]


def write_segments(
    folder: Path,
    layout: Layout,
    embeddings: Rows,
    old: Predecessor | None = None,
    progress: Callable[[int], None] = lambda blocks: None,
) -> int:
    """Pack ``embeddings`` float32 [n, dim] into ``folder``; return how many blocks were packed.

    A segment that is there, or in ``old``, with the same embeddings is kept: so a build that was
    killed goes on, and an epoch shares what did not change. Of a segment that nothing touched not
    even the embeddings are looked at. Blocks that are kept are not read here:
    :func:`damaged_segments` is for that. ``progress`` gets the blocks done so far. Raises what
    ``write_packed`` does.
    """
    if embeddings.shape != (layout.items, layout.dim):
        raise UsageError(f"embeddings are {(layout.items, layout.dim)}, got {embeddings.shape}")
    size, done, packed = segment_items(layout), 0, 0
    try:
        for number, path in enumerate(segment_paths(folder, layout)):
            start, stop = number * size, min(layout.items, (number + 1) * size)
            own = Layout(layout.preset, layout.dim, layout.chunk_width, stop - start)
            there = old.folder / path.name if old and path.name not in old.damaged else None
            if old and there and old.keeps(start, stop, size) and there.exists():
                share(there, path)
            else:
                rows = embeddings[start:stop]
                page = Header.of(own, rows).to_page()
                if not _begins(path, page):
                    if there and _begins(there, page):
                        share(there, path)
                    else:
                        write_packed(path, own, rows)
                        packed += own.blocks
            done += own.blocks
            progress(done)
        sync_folder(folder)
    except OSError as error:
        raise storage_error(folder, error) from error
    return packed


class PackedSegments:
    """The segments of one epoch, mapped read-only: ``blocks`` uint32 [blocks, k, N/16, d1, 16]."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        """Map them; raise :class:`StorageError` for one that is not whole or of another layout."""
        self.layout = layout
        self._parts = [PackedIndex(path) for path in segment_paths(folder, layout)]
        size = segment_items(layout)
        for number, part in enumerate(self._parts):
            items = min(size, layout.items - number * size)
            expected = Layout(layout.preset, layout.dim, layout.chunk_width, items)
            if part.layout != expected:
                raise StorageError(
                    f"{part.path.name}: expected {expected}, got {part.layout}", REBUILD
                )
        self.blocks = _side_by_side(self._parts, layout)

    @property
    def digest(self) -> str:
        """SHA-256 over the segments' digests, in hexadecimal: it stands for all of them."""
        return hashlib.sha256("".join(part.digest for part in self._parts).encode()).hexdigest()


def damaged_segments(folder: Path, layout: Layout, embeddings: Rows) -> list[str]:
    """Return the names of segments that are not whole, or not of ``embeddings``: all is read."""
    size, found = segment_items(layout), []
    for number, path in enumerate(segment_paths(folder, layout)):
        rows = embeddings[number * size : (number + 1) * size]
        own = Layout(layout.preset, layout.dim, layout.chunk_width, len(rows))
        try:
            good = _begins(path, Header.of(own, rows).to_page())
            if good:
                PackedIndex(path).verify()
        except (StorageError, OSError):
            good = False
        if not good:
            found.append(path.name)
    return found


def _begins(path: Path, page: bytes) -> bool:
    """Say whether a whole packed file with this header is there: other embeddings, other page."""
    try:
        with path.open("rb") as file:
            return file.read(PAGE) == page and (
                os.fstat(file.fileno()).st_size == Header.from_page(page).file_bytes
            )
    except FileNotFoundError:
        return False


def _side_by_side(parts: list[PackedIndex], layout: Layout) -> U32:
    """Map the records of all parts one after the other: the scan reads one array, uncopied.

    Records are whole pages, so each part is mapped over its place in a range that was set aside;
    the array keeps the range, and its end unmaps all.
    """
    shape = (layout.blocks, *block_shape(layout))
    whole = mmap.mmap(-1, 4 * prod(shape), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, mmap.PROT_READ)
    blocks = np.frombuffer(whole, np.uint32).reshape(shape)
    system = ctypes.CDLL(None, use_errno=True)
    system.mmap.restype = ctypes.c_void_p
    system.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *3 * [ctypes.c_int], ctypes.c_long]
    place = blocks.ctypes.data
    for part in parts:
        with part.path.open("rb") as file:
            start = os.fstat(file.fileno()).st_size - part.blocks.nbytes
            got = system.mmap(
                place, part.blocks.nbytes, mmap.PROT_READ, mmap.MAP_SHARED | _MAP_FIXED,
                file.fileno(), start,
            )  # fmt: skip
        if got != place:
            why = os.strerror(ctypes.get_errno())
            raise StorageError(f"{part.path} cannot be mapped: {why}", REBUILD)
        place += part.blocks.nbytes
    return blocks
