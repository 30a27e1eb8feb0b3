"""Reading a word list that may come from somebody else, a bounded line at a time."""

from collections.abc import Iterator
from pathlib import Path

from protocol.errors import DataError
from protocol.files import check_file

#: WordNet's longest file has 15 MB, its longest line 13 kB.
FILE_BYTES = 64 << 20
LINE_BYTES = 64 << 10


def read_lines(path: Path, hint: str) -> Iterator[tuple[int, str]]:
    """Numbered lines of UTF-8, without their ends.

    Raises DataError with ``hint``, naming file and line, for a file that is missing, larger than
    FILE_BYTES or not UTF-8, or for a line longer than LINE_BYTES.
    """
    try:
        check_file(path, FILE_BYTES, hint)
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES + 1):
                number += 1
                if len(line) > LINE_BYTES:
                    raise broken(path, number, f"a line of at most {LINE_BYTES:,} bytes", hint)
                yield number, line.decode("utf-8-sig").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise broken(path, number, f"UTF-8, got {error.object[error.start]:#x}", hint) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}", hint) from error


def broken(path: Path, number: int, expected: str, hint: str) -> DataError:
    """The error for one line that is not as ``expected``."""
    return DataError(f"{path}, line {number}: expected {expected}", hint)
