"""Files that are whole or absent: written to a temporary name, synced, then renamed."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from protocol.errors import StorageError


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


def sync_folder(path: Path) -> None:
    """Make names that were created or renamed in ``path`` survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def storage_error(path: Path | str, error: OSError) -> StorageError:
    """Say what a failed write to ``path`` means and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageError(
            f"no space left to write {path}",
            f"Free some space or choose another place, then run the command again; {path} was "
            "not changed.",
        )
    return StorageError(
        f"{path} cannot be written: {error.strerror or error}", "Check its permissions."
    )
