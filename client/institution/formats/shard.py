"""A shard: an uncompressed tar of images, read in place by offset and never unpacked.

A member's name is only ever compared with names; it never becomes a path.
"""

import tarfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, cast

from client.institution.formats.checks import checked_name, is_regular, shown
from client.institution.formats.source import BoundedFile
from protocol.errors import DataError

SUFFIX = ".tar"
MEMBERS = 1_000_000
_HEADER_BYTES = 1 << 20
_HINT = "write the shard again as a plain, uncompressed tar of files"


def members(path: Path) -> dict[str, tuple[int, int]]:
    """Offset and size of every file in the shard, by canonical name, in the order of the tar.

    Raises DataError for a damaged tar, for names that are no relative paths or stand there
    twice, and for more than MEMBERS of them; OSError for a shard that is not there.
    """
    status = path.stat()
    return _members(path, status.st_mtime_ns, status.st_size)


def read_member(path: Path, name: str, limit: int) -> bytes:
    """The bytes of one member; DataError for more than ``limit``, FileNotFoundError for none."""
    try:
        offset, size = members(path)[name]
    except KeyError:
        raise FileNotFoundError(name) from None
    if size > limit:
        raise DataError(f"{path}/{name}: expected at most {limit:,} bytes, got {size:,}", _HINT)
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


@lru_cache(maxsize=256)
def _members(path: Path, changed: int, size: int) -> dict[str, tuple[int, int]]:
    """``changed`` and ``size`` notice another file under the same name."""
    found: dict[str, tuple[int, int]] = {}
    for member in _scan(path):
        if (
            not member.isreg()
            or member.issparse()
            or member.name.rpartition("/")[2].startswith(".")
        ):
            continue
        where = f"{path}, member {shown(member.name)}"
        name = checked_name(member.name, where)
        if name in found:
            raise DataError(f"{where}: stands there twice", _HINT)
        if not 0 <= member.offset_data <= member.offset_data + member.size <= size:
            raise DataError(f"{where}: reaches beyond the end of the file", _HINT)
        if len(found) == MEMBERS:
            raise DataError(f"{path}: more than {MEMBERS:,} files", "write smaller shards")
        found[name] = member.offset_data, member.size
    return found


def _scan(path: Path) -> Iterator[tarfile.TarInfo]:
    if not is_regular(path):
        raise DataError(f"{path}: expected a file, got a folder or a device", _HINT)
    try:
        with path.open("rb") as file:
            bounded = cast(BinaryIO, BoundedFile(file, _HEADER_BYTES))
            with tarfile.open(fileobj=bounded, mode="r:") as tar:
                last = -1
                while (member := tar.next()) is not None:
                    if member.offset <= last:  # a negative size would lead back for ever
                        raise DataError(f"{path}: a member of negative size", _HINT)
                    last = member.offset
                    yield member
                    # tarfile keeps every header; the names that count are kept here.
                    cast("list[tarfile.TarInfo]", tar.members).clear()  # type: ignore[attr-defined]
    except DataError as error:
        raise (error if error.hint else DataError(f"{path}: {error.message}", _HINT)) from None
    except Exception as error:  # a parser that is fed foreign bytes may raise nearly anything
        raise DataError(f"{path}: cannot be read as a tar ({error})", _HINT) from error
