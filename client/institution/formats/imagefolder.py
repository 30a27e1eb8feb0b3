"""The imagefolder convention: ``metadata.jsonl`` beside the images.

A line (UTF-8) describes one image::

    {"file_name": "images/a.png", "captions": ["a cat", "pet"], "split": "train", "site": "clinic"}

``caption`` or ``text`` (one string) may stand for ``captions``; ``split``, ``site`` and the group
may be missing; unknown keys are ignored. Another ``.jsonl`` of such lines may be given by name, or
lie alone in the folder.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

from client.institution.formats.collection import Entry, captions_of, fields
from client.institution.formats.source import decode_object, lines, mentions
from client.institution.pairs import METADATA, Skip

NAME = "imagefolder"
SEARCHES = False


def find(folder: Path, files: Sequence[Path]) -> list[Path]:
    """``metadata.jsonl``, or every other file of such lines."""
    named = [path for path in files if path.name == METADATA]
    return named or [
        path for path in files if path.suffix == ".jsonl" and mentions(path, b'"file_name"')
    ]


def entries(folder: Path, sources: Sequence[Path], group_key: str) -> Iterator[Entry | Skip]:
    """One entry a line."""
    for source in sources:
        for number, line in lines(source):
            if line.strip():
                at = f"line {number}"
                where = f"{source}, {at}"
                found = decode_object(line, where)
                said = fields(found, where, group_key)
                yield Entry(source, at, found.get("file_name"), captions_of(found, where), **said)
