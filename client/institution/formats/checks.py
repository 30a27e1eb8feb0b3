"""What a foreign name, text or place must be before it is used."""

import os
import stat
from pathlib import Path, PurePosixPath
from typing import TypeGuard

from protocol.errors import DataError


def is_text(value: object) -> TypeGuard[str]:
    """Whether this is a string that can be written as UTF-8 (JSON may escape half a letter)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def checked_name(name: object, where: str) -> str:
    """The name in its one canonical spelling, if it is a relative path without tricks.

    Raises DataError for anything else.
    """
    path = PurePosixPath(name) if is_text(name) else None
    if path is None or not is_text(name):
        raise wrong(f"{where}: file_name", "a string", name)
    if not path.parts or path.is_absolute() or ".." in path.parts or set(name) & set("\\\0"):
        raise DataError(
            f"{where}: file_name: expected a relative path with forward slashes and without "
            f"'..', got {shown(name)}",
            'write it relative to the folder: "images/a.png"',
        )
    return path.as_posix()


def inside(real_root: str, name: str, where: str) -> Path:
    """The path of ``name`` with every symbolic link followed; DataError if it leaves the folder."""
    real = Path(os.path.realpath(f"{real_root}/{name}"))
    if not real.is_relative_to(real_root):
        raise DataError(
            f"{where}: {shown(name)} is a link that leads out of the folder",
            "copy the file into the folder in place of the link",
        )
    return real


def is_regular(path: Path) -> bool:
    """Whether there is a plain file, or a link to one."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


def shown(value: object) -> str:
    """A foreign value as an error may quote it."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def wrong(where: str, expected: str, got: object) -> DataError:
    """The error for a value of a wrong type."""
    found = "nothing" if got is None else f"{shown(got)} ({type(got).__name__})"
    return DataError(
        f"{where}: expected {expected}, got {found}",
        'a line looks like {"file_name": "images/a.png", "captions": ["…"], "split": "train"}',
    )
