"""How masking's messages are written: byte strings, each after its length in four bytes."""

import struct
from collections.abc import Iterable

from protocol.errors import MalformedMessage

_LENGTH = struct.Struct("<I")


def join_fields(fields: Iterable[bytes]) -> bytes:
    """One byte string that ``split_fields`` takes apart again, and no other list gives."""
    return b"".join(_LENGTH.pack(len(field)) + field for field in fields)


def split_fields(content: object, what: str, count: range, longest: int) -> list[bytes]:
    """The fields of foreign bytes: ``count`` of them, none longer than ``longest`` bytes.

    Raises MalformedMessage, naming ``what`` they were to be.
    """
    if not isinstance(content, bytes):
        raise MalformedMessage(f"{what}: expected bytes, got {type(content).__name__}")
    most = (count.stop - 1) * (_LENGTH.size + longest)
    if len(content) > most:
        raise MalformedMessage(f"{what}: expected at most {most:,} bytes, got {len(content):,}")
    fields: list[bytes] = []
    at = 0
    while at < len(content):
        if len(content) - at < _LENGTH.size:
            raise MalformedMessage(f"{what}: it ends in the middle of a length")
        (length,) = _LENGTH.unpack_from(content, at)
        at += _LENGTH.size
        if length > longest or length > len(content) - at:
            raise MalformedMessage(f"{what}: a field of {length:,} bytes is too long")
        fields.append(content[at : at + length])
        at += length
        if len(fields) >= count.stop:
            break
    if len(fields) not in count or at != len(content):
        raise MalformedMessage(
            f"{what}: expected {count.start} to {count.stop - 1} fields, got {len(fields)} or more"
        )
    return fields


def expect_size(field: bytes, size: int, what: str) -> bytes:
    """The field. Raises MalformedMessage unless it has ``size`` bytes."""
    if len(field) != size:
        raise MalformedMessage(f"{what}: expected {size} bytes, got {len(field)}")
    return field


def read_names(content: object, what: str, most: int) -> tuple[str, ...]:
    """1 to ``most`` names in ascending order, none twice. Raises MalformedMessage."""
    fields = split_fields(content, what, range(1, most + 1), 63)
    if fields != sorted(set(fields)) or not all(field.isascii() for field in fields):
        raise MalformedMessage(f"{what}: expected names in ascending order, none twice")
    return tuple(field.decode() for field in fields)


def join_names(names: Iterable[str]) -> bytes:
    """Undoes ``read_names``, in ascending order."""
    return join_fields(sorted(name.encode() for name in names))
