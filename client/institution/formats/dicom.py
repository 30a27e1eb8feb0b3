"""A folder of DICOM studies (``.dcm``, at any depth) with their reports.

The report of an image is, in this order: the ``.txt`` of the same name beside it; the only other
``.txt`` in its folder, or in a folder above it; the ``.txt`` beside one of those folders and named
like it (as MIMIC-CXR has it). Reports in a table or in lines are read in those forms, which may
name ``.dcm`` files too.

The patient makes the group, and where none is named the study: as a hash, for telling items apart
in memory. A hash of an identifier is no anonymity, so it is neither written nor sent.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from client.institution.formats.checks import is_regular
from client.institution.formats.collection import Entry
from client.institution.formats.source import read_text
from client.institution.pairs import Skip
from protocol.errors import DataError

NAME = "DICOM studies"
SEARCHES = False
SUFFIX = ".dcm"
#: Texts that lie in many a folder and are no reports.
_NO_REPORTS = ("readme", "license", "licence", "copying", "changelog", "index")


def find(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Every ``.dcm`` below ``folder``; no link to a folder is followed."""
    return sorted(
        Path(parent, name)
        for parent, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(SUFFIX) and not name.startswith(".")
    )


def entries(folder: Path, sources: Sequence[Path], group_key: str) -> Iterator[Entry | Skip]:
    """One entry for each image that has one report."""
    stems = {source.with_suffix("") for source in sources}
    loose: dict[Path, list[Path]] = {}
    texts: dict[Path, str] = {}
    for source in sources:
        name = source.relative_to(folder).as_posix()
        found = _report(source, folder, stems, loose)
        if len(found) != 1:
            many = f"{len(found)} reports in its folder, expected one" if found else "no report"
            yield Skip(str(source), many)
            continue
        report = found[0]
        if report not in texts:
            try:
                texts[report] = " ".join(read_text(report).split())
            except DataError as error:
                yield Skip(str(source), f"its report: {error.message}")
                continue
        yield Entry(report, f"report of {name}", name, (texts[report],))


def _report(
    source: Path, folder: Path, stems: set[Path], loose: dict[Path, list[Path]]
) -> list[Path]:
    """The report of one image; none, or several where it is not clear which."""
    if is_regular(own := source.with_suffix(".txt")):
        return [own]
    for parent in source.parents:
        if parent not in loose:
            loose[parent] = sorted(
                path
                for path in parent.glob("*.txt")
                if path.with_suffix("") not in stems
                and not path.with_suffix("").is_dir()
                and not path.stem.lower().startswith(_NO_REPORTS)
            )
        if loose[parent]:
            return loose[parent]
        if parent == folder:
            return []
        if is_regular(beside := parent.with_suffix(".txt")):
            return [beside]
    return []
