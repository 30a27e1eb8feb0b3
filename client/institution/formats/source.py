"""Reading a file that describes pairs: its size is known before a byte of it is in memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from client.institution.formats.checks import is_regular, wrong
from protocol.errors import DataError
from protocol.files import check_file, read_bounded

SOURCE_BYTES = 512 << 20
LINE_BYTES = 1 << 20
#: A JSON file stands in memory as a whole. COCO's captions take 92 MB, Karpathy's 144 MB.
JSON_BYTES = 256 << 20
#: Objects, lists and what they hold: ten times that of Karpathy's COCO would not fit in memory.
JSON_VALUES = 24_000_000
_SMALLER = "split the data among several folders"
_STEP = 1 << 20


def lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines with their ends; no more than LINE_BYTES of the file is ever in memory."""
    try:
        check_file(path, SOURCE_BYTES, _SMALLER)
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES + 1):
                number += 1
                if len(line) > LINE_BYTES:
                    raise DataError(
                        f"{path}, line {number}: longer than {LINE_BYTES:,} bytes",
                        "write one line for each image",
                    )
                yield number, line
    except OSError as error:
        raise _unreadable(path, error) from error


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """The same as text; raises DataError for a line that is not UTF-8."""
    for number, line in lines(path):
        try:
            yield number, line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise DataError(
                f"{path}, line {number}: not UTF-8: {error.reason} at byte {error.start}",
                "save the file as UTF-8",
            ) from error


def read_text(path: Path) -> str:
    """A whole small text of at most LINE_BYTES; DataError for more, or for other than UTF-8."""
    try:
        check_file(path, LINE_BYTES, "keep one text in a file")
        return path.read_bytes()[: LINE_BYTES + 1].decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8: {error.reason}", "save the file as UTF-8") from error
    except OSError as error:
        raise _unreadable(path, error) from error


def decode_object(content: bytes, where: str) -> dict[str, Any]:
    """A JSON object, or DataError."""
    try:
        found = json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: not a JSON object: {error}",
            "repair or remove it; nothing was read from the rest",
        ) from error
    if not isinstance(found, dict):
        raise wrong(where, "a JSON object", found)
    return found


def read_object(path: Path) -> dict[str, Any]:
    """A file that is one JSON object of at most JSON_BYTES and JSON_VALUES, or DataError."""
    try:
        content = read_bounded(path, JSON_BYTES, _SMALLER)
    except OSError as error:
        raise _unreadable(path, error) from error
    # Two bytes may become an object of a hundred: counted before they are.
    values = sum(content.count(one) for one in (b"{", b"[", b","))
    if values > JSON_VALUES:
        raise DataError(
            f"{path}: expected at most {JSON_VALUES:,} values, got up to {values:,}", _SMALLER
        )
    return decode_object(content, str(path))


def listed(found: dict[str, Any], key: str, where: object) -> list[dict[str, Any]]:
    """The list of objects at ``key``, or DataError."""
    some = found.get(key)
    if not isinstance(some, list):
        raise wrong(f"{where}: {key}", "a list", some)
    for index, one in enumerate(some):
        if not isinstance(one, dict):
            raise wrong(f"{where}, {key}[{index}]", "a JSON object", one)
    return some


def mentions(path: Path, *words: bytes) -> bool:
    """Whether a plain file holds all of ``words`` somewhere, looked up a piece at a time."""
    left, tail = set(words), b""
    longest = max(map(len, words))
    if not is_regular(path):
        return False
    try:
        with path.open("rb") as file:
            while left and (piece := file.read(_STEP)):
                left -= {word for word in left if word in tail + piece}
                tail = piece[-longest:]
    except OSError:
        return False
    return not left


class BoundedFile:
    """A file for a parser of headers, which may neither ask for much at once nor go far.

    ``read`` raises DataError for more than ``at_once`` bytes, for all of the rest, and for what
    lies beyond ``end``: a parser believes lengths that a hostile file made up.
    """

    def __init__(self, file: BinaryIO, at_once: int, end: int | None = None) -> None:
        self._file, self._at_once, self._end = file, at_once, end
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes from here."""
        if size < 0:
            raise DataError("a header that cannot be read without unpacking the whole file")
        if size > self._at_once:
            raise DataError(
                f"a header that asks for {size:,} bytes; expected at most {self._at_once:,}"
            )
        if self._end is not None and self.tell() + size > self._end:
            raise DataError(f"a header of more than {self._end:,} bytes")
        return self._file.read(size)


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path}: cannot be read: {error.strerror}", "check its name and its permissions"
    )
