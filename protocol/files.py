"""Files that are whole or absent: written to a temporary name, synced, then renamed.

Also files that one process alone may write, what is checked before a file is opened, and what a
failed write is called.
"""

import errno
import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from protocol.errors import DataError, StorageError


@contextmanager
def replace_atomically(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the name ``path`` when the block ends without an error.

    A crash at any moment leaves the old file or the new one, never a part of either.
    Raises :class:`StorageError` when the disk is full or refuses; an error of another file that
    the block works with passes through.
    """
    temporary: Path | None = None
    in_block = False
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        with os.fdopen(handle, "w+b") as file:
            in_block = True
            yield file
            in_block = False
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if in_block and error.filename is not None:
            raise
        raise storage_error(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write ``content`` to ``path`` as :func:`replace_atomically` does; text is UTF-8."""
    with replace_atomically(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


@contextmanager
def open_exclusively(path: Path) -> Iterator[int]:
    """Open ``path``, made if it is missing, as no other process may have it; yield a descriptor.

    The lock ends with the block, and with the process. Raises :class:`StorageError` while another
    has it, OSError if it cannot be opened.
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


def write_at(file: int, content: bytes | memoryview, offset: int) -> None:
    """Write all of ``content`` at ``offset`` of an open file; the system may take it in parts."""
    left = memoryview(content).cast("B")
    while left:
        written = os.pwrite(file, left, offset)
        left, offset = left[written:], offset + written


def sync_folder(path: Path) -> None:
    """Make names that were created or renamed in ``path`` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def writing(where: Path) -> Iterator[None]:
    """Turn an OSError from writing below ``where`` into a :class:`StorageError`."""
    try:
        yield
    except OSError as error:
        raise storage_error(where, error, "what was written is harmless") from error


def read_bounded(path: Path, limit: int, hint: str) -> bytes:
    """Read a file of at most ``limit`` bytes; raise what ``check_file`` does.

    Python sets aside what it is asked to read, so it is asked for no more than is there.
    """
    size = check_file(path, limit, hint)
    with path.open("rb") as file:
        return file.read(size)


def check_file(path: Path, limit: int, hint: str) -> int:
    """Look before opening: a pipe would block, a huge file would fill the memory.

    Returns the size in bytes. Raises :class:`DataError` with ``hint`` for anything but a file of
    at most ``limit`` bytes, OSError for one that is not there.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path}: expected a file, got a folder or a device", hint)
    if status.st_size > limit:
        raise DataError(f"{path}: expected at most {limit:,} bytes, got {status.st_size:,}", hint)
    return status.st_size


def storage_error(path: Path | str, error: OSError, left: str | None = None) -> StorageError:
    """Say what a failed write to ``path`` means, what it ``left`` there and what to do."""
    message = f"{path} cannot be written: {error.strerror or error}"
    hint = "Check its permissions, or choose another place."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        message = f"no space left to write {path}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        hint = (
            "Free some space or choose another place, then run the command again; "
            f"{left or f'{path} was not changed'}."
        )
    return StorageError(message, hint)
