"""WebDataset: shards ``*.tar`` in which members of one key belong together.

``000123.jpg`` (or png, webp) and ``000123.txt``, or ``000123.json`` with captions, ``split``,
``site`` and group. A shard's name may tell the split: ``flickr-train-0001.tar``. A pair is named
``shard.tar/member``; shards are read in place.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from client.institution.formats.collection import Entry, captions_of, fields, split_in
from client.institution.formats.shard import SUFFIX, members, read_member
from client.institution.formats.source import LINE_BYTES, decode_object
from client.institution.pairs import Skip
from protocol.errors import DataError

NAME = "WebDataset"
SEARCHES = False
_IMAGES = ("jpg", "jpeg", "png", "webp")


def find(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Every shard."""
    return [path for path in files if path.suffix == SUFFIX]


def entries(folder: Path, sources: Sequence[Path], group_key: str) -> Iterator[Entry | Skip]:
    """One entry for each key that has an image; a key with several has several entries."""
    for shard in sources:
        prefix, split = shard.relative_to(folder).as_posix(), split_in(shard.stem)
        keys: dict[str, dict[str, str]] = {}
        for name in _members(shard):
            parent, slash, last = name.rpartition("/")
            stem, _, extension = last.partition(".")
            keys.setdefault(parent + slash + stem, {})[extension.lower()] = name
        for key, found in keys.items():
            images = [name for extension, name in found.items() if _kind(extension) in _IMAGES]
            where = f"{shard}, key {key}"
            if not images:
                yield Skip(where, "no image")
                continue
            about: dict[str, Any] = {}
            captions: tuple[str, ...] = ()
            if "json" in found:
                about = decode_object(_text(shard, found["json"]), where)
            if "txt" in found:
                captions = (_decoded(_text(shard, found["txt"]), where),)
            elif about.keys() & {"captions", "caption", "text"}:
                captions = captions_of(about, where)
            said = fields(about, where, group_key)
            said["split"] = said["split"] or split
            for image in images:
                yield Entry(shard, f"key {key}", f"{prefix}/{image}", captions, **said)


def _kind(extension: str) -> str:
    return extension.rsplit(".", 1)[-1]


def _members(shard: Path) -> dict[str, tuple[int, int]]:
    try:
        return members(shard)
    except OSError as error:
        raise DataError(
            f"{shard}: cannot be read: {error.strerror}", "check its permissions"
        ) from error


def _text(shard: Path, name: str) -> bytes:
    return read_member(shard, name, LINE_BYTES)


def _decoded(content: bytes, where: str) -> str:
    try:
        return content.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8: {error.reason}", "write texts as UTF-8") from error
