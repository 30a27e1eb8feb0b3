"""Flickr's token files: a line ``name.jpg#0<TAB>caption`` for each caption of an image.

Flickr8k has ``Flickr8k.token.txt`` and, beside it, the names of each split in
``Flickr_8k.trainImages.txt``, ``…devImages.txt`` and ``…testImages.txt``; Flickr30k has
``results_20130124.token`` without splits. Where there are lists, an image in none of them is left
out, for the published splits do so.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from client.institution.formats.collection import SPLIT_NAMES, Entry
from client.institution.formats.source import text_lines
from client.institution.pairs import Skip
from protocol.errors import DataError

NAME = "Flickr token file"
SEARCHES = True
_TOKENS = re.compile(r"(?<!lemma)\.token(\.txt)?$")
_LIST = re.compile(r"(train|dev|val|test)images\.txt$", re.IGNORECASE)


def find(folder: Path, files: Sequence[Path]) -> list[Path]:
    """The token file, but not the one of lemmas, and the lists of the splits."""
    tokens = [path for path in files if _TOKENS.search(path.name)]
    if not tokens:
        return []
    beside = {path for token in tokens for path in token.parent.glob("*.txt")}
    return tokens + sorted(path for path in beside if _LIST.search(path.name))


def entries(folder: Path, sources: Sequence[Path], group_key: str) -> Iterator[Entry | Skip]:
    """One entry for each image, at its first line."""
    splits = {
        name: SPLIT_NAMES[match[1].lower()]
        for source in sources
        if (match := _LIST.search(source.name))
        for _, line in text_lines(source)
        if (name := line.strip())
    }
    for source in sources:
        if _LIST.search(source.name):
            continue
        first: dict[str, int] = {}
        captions: dict[str, list[str]] = defaultdict(list)
        for number, line in text_lines(source):
            if not line.strip():
                continue
            name, hash_, rest = line.partition("#")
            count, tab, caption = rest.partition("\t")
            if not (hash_ and tab and count.strip().isdigit()):
                raise DataError(
                    f"{source}, line {number}: expected name.jpg#0, a tab and a caption",
                    "repair or remove this line; nothing was read from the rest",
                )
            first.setdefault(name, number)
            captions[name].append(caption.strip())
        for name, number in first.items():
            if splits and name not in splits:
                yield Skip(f"{source}, line {number}", f"{name}: in none of the lists of splits")
            else:
                said = tuple(captions[name])
                yield Entry(source, f"line {number}", name, said, splits.get(name))
