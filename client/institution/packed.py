"""The packed form of an index: what encrypted scoring reads, memory-mapped from disk.

    header   4,096 bytes   magic with version, then JSON: layout, record, digest of the embeddings
    digests  32 x blocks   SHA-256 of each record, filled up to whole pages
    records  uint32        ``blocks`` records of ``pack_block``, one after the other

A block is one contiguous record with a digest of its own, so that a build that was killed goes on
where it was, damage has a place, and other items re-pack only the blocks that they touch.
"""

import fcntl
import hashlib
import json
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from math import prod
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from client.institution.blocks import block_shape, pack_block
from protocol.errors import BlindsightError, StorageError, UsageError
from protocol.files import storage_error, sync_folder
from protocol.ntt import U32
from protocol.packing import Layout
from protocol.params import preset_by_name

REBUILD = "Build it again: blindsight institution index."

_MAGIC = b"blindsight packed index 2\n"
_VERSION = re.compile(rb"blindsight packed index (\d{1,9})\n")
_PAGE = 4096
_DIGEST = hashlib.sha256().digest_size
_NOT_PACKED = bytes(_DIGEST)

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
        with alone(part) as file:
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
                head = file.read(_PAGE)
            self.layout = _layout(head)
            expected, found = _file_bytes(self.layout), path.stat().st_size
            if found != expected:
                raise ValueError(f"it has {found} bytes, expected {expected}")
            shape = (self.layout.blocks, *block_shape(self.layout))
            self._head: NDArray[np.uint8] = np.memmap(path, np.uint8, "r", 0, _start(self.layout))
            self.blocks: U32 = np.memmap(path, np.uint32, "r", _start(self.layout), shape)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, BlindsightError) as error:
            raise StorageError(
                f"{path.name} is not a usable packed index: {error}", REBUILD
            ) from error

    @property
    def digest(self) -> str:
        """SHA-256 of header and digests, in hexadecimal: it stands for the whole file."""
        return hashlib.sha256(self._head.data).hexdigest()

    def verify(self, threads: int | None = None) -> None:
        """Read every block against its digest; raise :class:`StorageError` with the damaged."""

        def whole(block: int) -> bool:
            known = self._head[_PAGE + _DIGEST * block :][:_DIGEST].tobytes()
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


@contextmanager
def alone(path: Path) -> Iterator[int]:
    """Open ``path``, made if it is missing, as nobody else may have it; yield a descriptor.

    Raises :class:`StorageError` while another has it, OSError if it cannot be opened.
    """
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever had it before may have renamed or removed it since it was opened here.
            if not os.path.samestat(os.fstat(file), path.stat()):
                raise BlockingIOError
        except (BlockingIOError, FileNotFoundError) as error:
            raise StorageError(
                f"another process is writing {path}", "Wait until it is done, or end it."
            ) from error
        yield file
    finally:
        os.close(file)


def _fill(
    file: int,
    layout: Layout,
    embeddings: NDArray[np.float32],
    progress: Callable[[int], None],
    threads: int,
) -> None:
    """Write header, digests and records into ``file``, but for the blocks that it has."""
    size, start, length = layout.block_items, _start(layout), _record_bytes(layout)
    header = _header(layout, _digest_of(embeddings, size))
    if os.pread(file, _PAGE, 0) != header or os.fstat(file).st_size != _file_bytes(layout):
        os.ftruncate(file, 0)
        os.posix_fallocate(file, 0, _file_bytes(layout))
        _write(file, header, 0)

    def has(block: int) -> bool:
        known = os.pread(file, _DIGEST, _PAGE + _DIGEST * block)
        if known == _NOT_PACKED:
            return False
        return hashlib.sha256(os.pread(file, length, start + length * block)).digest() == known

    def pack(block: int) -> None:
        record = pack_block(layout, embeddings[block * size : (block + 1) * size])
        _write(file, record.data, start + length * block)
        # Last, so that a block with a digest is whole.
        _write(file, hashlib.sha256(record.data).digest(), _PAGE + _DIGEST * block)

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


def _write(file: int, content: bytes | memoryview, offset: int) -> None:
    left = memoryview(content).cast("B")
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written


def _digest_of(embeddings: NDArray[np.float32], rows: int) -> str:
    """Hash ``rows`` at a time: embeddings may be a file that is larger than the memory."""
    digest = hashlib.sha256()
    for start in range(0, len(embeddings), rows):
        digest.update(np.ascontiguousarray(embeddings[start : start + rows]).data)
    return digest.hexdigest()


def _header(layout: Layout, digest: str) -> bytes:
    fields = {
        "preset": layout.preset.name,
        "dim": layout.dim,
        "chunk_width": layout.chunk_width,
        "items": layout.items,
        "record": block_shape(layout),
        "embeddings": digest,
    }
    return (_MAGIC + json.dumps(fields).encode() + b"\n").ljust(_PAGE, b"\0")


def _layout(head: bytes) -> Layout:
    """Parse a header; raise ValueError and the like unless it is, to the byte, as written here."""
    if not head.startswith(_MAGIC):
        if other := _VERSION.match(head):
            raise ValueError(f"it is of version {int(other[1])}, expected version 2")
        raise ValueError("it does not begin as a packed index does")
    fields = json.loads(head[len(_MAGIC) :].rstrip(b"\0"))
    sizes = [fields[name] for name in ("dim", "chunk_width", "items")]
    if any(type(size) is not int for size in sizes):
        raise ValueError(f"its sizes are whole numbers, got {sizes}")
    layout = Layout(preset_by_name(fields["preset"]), *sizes)
    digest = bytes.fromhex(fields["embeddings"])
    if len(digest) != _DIGEST or _header(layout, digest.hex()) != head:
        raise ValueError("its header is not as this version writes it")
    return layout


def _record_bytes(layout: Layout) -> int:
    return 4 * prod(block_shape(layout))


def _start(layout: Layout) -> int:
    """Bytes before the first record: header and digests, whole pages."""
    return _PAGE - (-_DIGEST * layout.blocks // _PAGE) * _PAGE


def _file_bytes(layout: Layout) -> int:
    return _start(layout) + layout.blocks * _record_bytes(layout)
