"""The imagefolder convention: ``metadata.jsonl`` beside the images.

A line (UTF-8) describes one image::

    {"file_name": "images/a.png", "captions": ["a cat", "pet"], "split": "train", "site": "clinic"}

``caption`` or ``text`` (one string) may stand for ``captions``; ``split``, ``site``, the group and
``release`` (a list: the forms in which searchers may be given it) may be missing; unknown keys are
ignored. Another ``.jsonl`` of such lines may be given by name, or
lie alone in the folder.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from client.institution.formats.checks import wrong
from client.institution.formats.collection import Entry, captions_of, fields
from client.institution.formats.source import decode_object, lines, mentions
from client.institution.pairs import FORMS, METADATA, Skip

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
                name, captions = found.get("file_name"), captions_of(found, where)
                yield Entry(source, at, name, captions, **said, release=_release(found, where))


def _release(found: Mapping[str, Any], where: str) -> frozenset[str] | None:
    release = found.get("release")
    if release is None:
        return None
    if not isinstance(release, list) or not all(one in FORMS for one in release):
        expected = f"a list of {', '.join(FORMS)} (none releases nothing), or no such key"
        raise wrong(f"{where}: release", expected, release)
    return frozenset(release)
