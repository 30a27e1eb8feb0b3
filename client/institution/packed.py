"""The packed form of an index: what encrypted scoring reads, memory-mapped from disk.

    header   4,096 bytes   magic with version, then JSON: layout, record, digest of the embeddings
    digests  32 x blocks   SHA-256 of each record, filled up to whole pages
    records  uint32        ``blocks`` records of ``pack_block``, one after the other

A block is one contiguous record with a digest of its own, so that a build that was killed goes on
where it was, damage has a place, and other items re-pack only the blocks that they touch.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from client.institution.blocks import pack_block
from client.institution.packed_header import DIGEST_BYTES, PAGE, Header
from protocol.errors import BlindsightError, StorageError, UsageError
from protocol.files import open_exclusively, storage_error, sync_folder, write_at
from protocol.ntt import U32
from protocol.packing import Layout

REBUILD = "Build it again: blindsight index build."
"""What helps against most damage."""

_NOT_PACKED = bytes(DIGEST_BYTES)

T = TypeVar("T")


def write_packed(
    path: Path,
    layout: Layout,
    embeddings: NDArray[np.float32],
    progress: Callable[[int], None] = lambda blocks: None,
    threads: int | None = None,
) -> None:
    """Pack ``embeddings`` float32 [n, dim], in memory or mapped, into ``path``.

    ``progress`` gets the blocks done so far, first of all those that a build of the same
    embeddings had done when it was killed or interrupted: they are kept. ``threads`` is the
    number of cores unless given. The file takes its name only when it is whole and on disk.
    Raises :class:`UsageError` for embeddings that do not fit ``layout``, :class:`StorageError`
    for a full disk, or while another process packs into ``path``.
    """
    if embeddings.shape != (layout.items, layout.dim) or embeddings.dtype != np.float32:
        raise UsageError(
            f"embeddings are float32 {(layout.items, layout.dim)}, "
            f"got {embeddings.dtype} {embeddings.shape}"
        )
    part = part_of(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open_exclusively(part) as file:
            try:
                _fill(file, layout, embeddings, progress, threads or os.cpu_count() or 1)
                os.fsync(file)
                part.replace(path)
                sync_folder(path.parent)
            except Exception:
                # What was interrupted is resumed; what failed would only fill the disk.
                part.unlink(missing_ok=True)
                raise
    except OSError as error:
        raise storage_error(path, error) from error


class PackedIndex:
    """A packed index, mapped read-only: ``blocks`` uint32 [blocks, k, N/16, d1, 16]."""

    def __init__(self, path: Path) -> None:
        """Map ``path``; raise :class:`StorageError` if it is not whole or of another version."""
        self.path = path
        try:
            with path.open("rb") as file:
                self._header = Header.from_page(file.read(PAGE))
            start, found = self._header.start, path.stat().st_size
            if found != self._header.file_bytes:
                raise ValueError(f"it has {found} bytes, expected {self._header.file_bytes}")
            self._head: NDArray[np.uint8] = np.memmap(path, np.uint8, "r", 0, start)
            self.blocks: U32 = np.memmap(path, np.uint32, "r", start, self._header.shape)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, BlindsightError) as error:
            raise StorageError(
                f"{path.name} is not a usable packed index: {error}", REBUILD
            ) from error

    @property
    def layout(self) -> Layout:
        """How it is packed."""
        return self._header.layout

    @property
    def digest(self) -> str:
        """SHA-256 of header and digests, in hexadecimal: it stands for the whole file."""
        return hashlib.sha256(self._head.data).hexdigest()

    def verify(self, threads: int | None = None) -> None:
        """Read every block against its digest; raise :class:`StorageError` with the damaged."""

        def whole(block: int) -> bool:
            known = self._head[self._header.digest_at(block) :][:DIGEST_BYTES].tobytes()
            return hashlib.sha256(self.blocks[block]).digest() == known

        numbers = range(self.layout.blocks)
        with closing(_ordered(whole, numbers, threads or os.cpu_count() or 1)) as found:
            damaged = [block for block, good in zip(numbers, found, strict=True) if not good]
        if damaged:
            some = ", ".join(map(str, damaged[:5])) + (", ..." if damaged[5:] else "")
            raise StorageError(
                f"{self.path.name} is damaged: {len(damaged)} of {len(numbers)} blocks differ "
                f"from their digests (block {some})",
                REBUILD,
            )


def part_of(path: Path) -> Path:
    """Return where ``path`` is written until it is whole."""
    return path.with_name(f".{path.name}.part")


def _fill(
    file: int,
    layout: Layout,
    embeddings: NDArray[np.float32],
    progress: Callable[[int], None],
    threads: int,
) -> None:
    """Write header, digests and records into ``file``, but for the blocks that it has."""
    header, size = Header.of(layout, embeddings), layout.block_items
    page = header.to_page()
    if os.pread(file, PAGE, 0) != page or os.fstat(file).st_size != header.file_bytes:
        os.ftruncate(file, 0)
        os.posix_fallocate(file, 0, header.file_bytes)
        write_at(file, page, 0)

    def has(block: int) -> bool:
        known = os.pread(file, DIGEST_BYTES, header.digest_at(block))
        if known == _NOT_PACKED:
            return False
        record = os.pread(file, header.record_bytes, header.record_at(block))
        return hashlib.sha256(record).digest() == known

    def pack(block: int) -> None:
        record = pack_block(layout, embeddings[block * size : (block + 1) * size])
        write_at(file, record.data, header.record_at(block))
        # Last, so that a block with a digest is whole.
        write_at(file, hashlib.sha256(record.data).digest(), header.digest_at(block))

    numbers = range(layout.blocks)
    with closing(_ordered(has, numbers, threads)) as found:
        missing = [block for block, kept in zip(numbers, found, strict=True) if not kept]
    done = len(numbers) - len(missing)
    progress(done)
    with closing(_ordered(pack, missing, threads)) as packed:
        for more, _ in enumerate(packed, 1):
            progress(done + more)


def _ordered(
    work: Callable[[int], T], numbers: Iterable[int], threads: int
) -> Generator[T, None, None]:
    """Yield ``work`` of each number, in order; ``threads`` work, never far ahead."""
    pending: deque[Future[T]] = deque()
    with ThreadPoolExecutor(threads, "pack") as pool:
        try:
            for number in numbers:
                pending.append(pool.submit(work, number))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
