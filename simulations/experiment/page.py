"""The page of an experiment."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocol.files import write_atomically


def write_page(path: Path, data: Mapping[str, Any]) -> None:
    """Write the page to ``path``: all of it or, with a StorageError, nothing."""
    write_atomically(path, "<!doctype html>")
