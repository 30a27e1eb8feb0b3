"""COCO captions: a JSON file of ``images`` and ``annotations``, the images in folders beside it.

The file lies beside the images' folders or in ``annotations/``. Its name tells the split and the
folder: ``captions_val2017.json`` is of ``val``, its images are looked for in ``val2017`` first.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from client.institution.formats.checks import is_text, shown, wrong
from client.institution.formats.collection import Entry, fields, split_in
from client.institution.formats.source import listed, mentions, read_object
from client.institution.pairs import Skip

NAME = "COCO captions"
SEARCHES = True


def find(folder: Path, files: Sequence[Path]) -> list[Path]:
    """Every JSON file with captions among its annotations; detections and key points have none."""
    words = (b'"images"', b'"annotations"', b'"caption"')
    return [path for path in files if path.suffix == ".json" and mentions(path, *words)]


def entries(folder: Path, sources: Sequence[Path], group_key: str) -> Iterator[Entry | Skip]:
    """One entry for each member of ``images``, with the captions that name its id."""
    for source in sources:
        found = read_object(source)
        captions, skips = _captions(found, source)
        yield from skips
        images = listed(found, "images", source)
        known: set[int | str] = set()
        for index, image in enumerate(images):
            at = f"images[{index}]"
            where = f"{source}, {at}"
            number = _id(image.get("id"), f"{where}: id")
            if number in known:
                raise wrong(f"{where}: id", "an id of its own", number)
            known.add(number)
            said = fields(image, where, group_key)
            said["split"] = said["split"] or split_in(source.stem)
            yield Entry(
                source,
                at,
                image.get("file_name"),
                tuple(captions.get(number, ())),
                **said,
                near=source.stem.removeprefix("captions_"),
            )
        for number in captions.keys() - known:
            yield Skip(f"{source}, annotations", f"captions of an unknown image {shown(number)}")


def _captions(
    found: dict[str, object], source: Path
) -> tuple[dict[int | str, list[str]], list[Skip]]:
    captions: dict[int | str, list[str]] = defaultdict(list)
    skips = []
    for index, one in enumerate(listed(found, "annotations", source)):
        where = f"{source}, annotations[{index}]"
        caption = one.get("caption")
        number = _id(one.get("image_id"), f"{where}: image_id")
        if caption is None:
            skips.append(Skip(where, "an annotation that is no caption"))
        elif not is_text(caption):
            raise wrong(f"{where}: caption", "a string", caption)
        else:
            captions[number].append(caption.strip())
    return captions, skips


def _id(value: object, where: str) -> int | str:
    if type(value) is int or is_text(value):
        return value
    raise wrong(where, "a whole number or a string", value)
