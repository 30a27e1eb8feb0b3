"""A table with a header: CSV, TSV, or Flickr30k's ``results.csv`` with its vertical bars.

One column names the image, one holds a text; ``split``, ``site`` and the group may have columns
too. Several rows of one image are several captions. Where several tables lie side by side
(``train.csv``, ``test.csv``) and have no column for it, the name of a table tells the split.
"""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from client.institution.formats.checks import is_regular
from client.institution.formats.collection import Entry, Fields, fields, split_in
from client.institution.formats.source import text_lines
from client.institution.pairs import Skip
from protocol.errors import DataError

NAME = "table"
SEARCHES = True
PATHS = ("file_name", "path", "image", "filepath", "filename", "image_name")
TEXTS = ("caption", "captions", "text", "report", "description", "title", "comment")
_SUFFIXES = (".csv", ".tsv")
#: Kaggle's Flickr8k is a CSV of this name.
_NAMED = "captions.txt"
_DELIMITERS = ",\t;|"


@dataclass(slots=True)
class _Image:
    at: str
    said: Fields
    captions: list[str] = field(default_factory=list)


def find(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Every table whose header names an image and a text."""
    likely = [path for path in files if path.suffix in _SUFFIXES or path.name == _NAMED]
    return [path for path in likely if is_regular(path) and _header(path)]


def entries(folder: Path, sources: Sequence[Path], group_key: str) -> Iterator[Entry | Skip]:
    """One entry for each image, at its first row."""
    for source in sources:
        images: dict[str, _Image] = {}
        yield from _read(source, group_key, images)
        split = split_in(source.stem) if len(sources) > 1 else None
        for name, image in images.items():
            image.said["split"] = image.said["split"] or split
            yield Entry(source, image.at, name, tuple(image.captions), **image.said)


def _read(source: Path, group_key: str, images: dict[str, _Image]) -> Iterator[Skip]:
    """Fill ``images`` by name; yield the rows that cannot be used."""
    header = _header(source)
    if header is None:
        raise DataError(
            f"{source}: expected a header with a column for the image ({', '.join(PATHS)}) and "
            f"one for the text ({', '.join(TEXTS)})",
            "add a first line that names the columns",
        )
    delimiter, names = header
    path, text = _column(names, PATHS), _column(names, TEXTS)
    rows = _rows(source, delimiter)
    next(rows)
    for number, row in rows:
        at = f"line {number}"
        where = f"{source}, {at}"
        if not any(row):
            continue
        if len(row) < len(names) or not row[path]:
            yield Skip(where, f"{len(row)} columns, expected {len(names)}, the image among them")
            continue
        found = {name: cell or None for name, cell in zip(names, row, strict=False)}
        said = fields(found, where, group_key.lower())
        image = images.setdefault(row[path], _Image(at, said))
        if image.said != said:
            raise DataError(
                f"{where}: another split, site or {group_key} than in {image.at}, for the same "
                "image",
                "give all rows of one image the same",
            )
        image.captions.append(row[text])


def _header(path: Path) -> tuple[str, list[str]] | None:
    """The delimiter under which the first row names an image and a text, and its names."""
    for delimiter in _DELIMITERS:
        try:
            _, row = next(_rows(path, delimiter), (0, []))
        except DataError:
            continue
        names = [name.lower() for name in row]
        if _column(names, PATHS) >= 0 and _column(names, TEXTS) >= 0:
            return delimiter, names
    return None


def _column(names: list[str], wanted: Sequence[str]) -> int:
    return next((names.index(name) for name in wanted if name in names), -1)


def _rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Numbered rows of stripped cells; raises DataError for what is no table."""
    # With bars nothing is quoted: captions of Flickr30k have quotation marks of their own.
    quoting: Literal[0, 3] = csv.QUOTE_NONE if delimiter == "|" else csv.QUOTE_MINIMAL
    reader = csv.reader(
        (line for _, line in text_lines(path)), delimiter=delimiter, quoting=quoting
    )
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{path}, line {reader.line_num}: not a row of a table: {error}",
                "check the quotation marks of this line and of those before it",
            ) from error
        if row is None:
            return
        yield reader.line_num, [cell.strip() for cell in row]
