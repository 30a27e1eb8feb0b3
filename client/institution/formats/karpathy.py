"""Karpathy's splits of Flickr8k, Flickr30k and COCO: ``dataset_flickr30k.json`` and its like.

``images`` is a list of ``{"filename", "filepath", "split", "sentences": [{"raw"}]}``; ``restval``
counts as ``train``, as in Karpathy and Fei-Fei (CVPR 2015).
"""

from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from client.institution.formats.checks import is_text, wrong
from client.institution.formats.collection import Entry, fields
from client.institution.formats.source import listed, mentions, read_object
from client.institution.pairs import Skip

NAME = "Karpathy splits"
SEARCHES = True


def find(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Every JSON file with sentences of images."""
    words = (b'"images"', b'"sentences"', b'"raw"')
    return [path for path in files if path.suffix == ".json" and mentions(path, *words)]


def entries(folder: Path, sources: Sequence[Path], group_key: str) -> Iterator[Entry | Skip]:
    """One entry for each member of ``images``."""
    for source in sources:
        for index, image in enumerate(listed(read_object(source), "images", source)):
            at = f"images[{index}]"
            where = f"{source}, {at}"
            name, path = image.get("filename"), image.get("filepath")
            if not is_text(name):
                raise wrong(f"{where}: filename", "a string", name)
            if path is not None and not is_text(path):
                raise wrong(f"{where}: filepath", "a string or nothing", path)
            said = [one.get("raw") for one in listed(image, "sentences", where)]
            if not all(map(is_text, said)):
                raise wrong(f"{where}: sentences", 'objects with a string "raw"', said)
            yield Entry(
                source,
                at,
                PurePosixPath(path or "", name).as_posix(),
                tuple(stripped for one in said if (stripped := str(one).strip())),
                **fields(image, where, group_key),
            )
