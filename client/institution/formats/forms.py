"""Which form a folder is in."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from client.institution.formats import (
    coco,
    dicom,
    imagefolder,
    karpathy,
    table,
    token,
    webdataset,
)
from client.institution.formats.checks import inside
from client.institution.formats.collection import Entry
from client.institution.pairs import METADATA, Skip
from protocol.errors import DataError

ANNOTATIONS = "annotations"
_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".token", ".tar")


class Form(Protocol):
    """What each module of a form offers; see the package."""

    NAME: str
    SEARCHES: bool

    def find(self, folder: Path, files: Sequence[Path]) -> list[Path]:
        """The files that describe pairs in this form."""

    def entries(
        self, folder: Path, sources: Sequence[Path], group_key: str
    ) -> Iterator[Entry | Skip]:
        """What they say."""


#: In the order in which they are tried. DICOM comes last: it looks into every folder below.
FORMS: tuple[Form, ...] = (imagefolder, karpathy, coco, token, table, webdataset, dicom)


def recognise(root: Path) -> tuple[Path, Form, list[Path]]:
    """The folder that names are relative to, its form, and the files that describe its pairs.

    ``root`` is a folder, or one describing file in it or in its ``annotations``. Raises DataError
    where nothing is recognised, or where a describing file is a link out of the folder.
    """
    if root.is_dir():
        folder, files, forms = root, _listed(root), FORMS
    elif root.is_file():
        above = root.parent
        folder = above.parent if above.name == ANNOTATIONS else above
        files, forms = [root], FORMS[:-1]
    else:
        raise DataError(
            f"no such folder or file: {root}",
            "give the folder that holds metadata.jsonl and the images",
        )
    real_folder = os.path.realpath(folder)
    for form in forms:
        if sources := form.find(folder, files):
            for source in sources:
                name = source.relative_to(folder).as_posix()
                inside(real_folder, name, str(folder))
            return folder, form, sources
    raise DataError(
        f"{root}: nothing here describes images: expected {METADATA}, captions of COCO, Karpathy "
        "or Flickr, a table with a column for the image and one for its text, shards (.tar), or "
        "DICOM studies with reports",
        'put a metadata.jsonl beside the images, a line each: {"file_name": "images/a.png", '
        '"captions": ["…"]}',
    )


def _listed(root: Path) -> list[Path]:
    """The files that may describe pairs; a ``metadata.jsonl`` goes before all others."""
    if os.path.lexists(root / METADATA):
        return [root / METADATA]
    found = []
    for folder in (root, root / ANNOTATIONS):
        if folder.is_dir() and not (folder is not root and folder.is_symlink()):
            with os.scandir(folder) as entries:
                names = [one.name for one in entries if not one.name.startswith(".")]
            found += [folder / name for name in sorted(names) if name.endswith(_SUFFIXES)]
    return found
