"""What an institution's data is, before anything is done with it: counts, sizes, what is skipped.

Nothing of it leaves the machine. Identifying DICOM tags are listed by name, never by value.
"""

import html
import io
import re
from base64 import b64encode
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from client.institution.images import DICOM, load_image, measure_image
from client.institution.pairs import SPLITS, Pair, PairFolder, Skip
from protocol.errors import DataError
from protocol.files import write_atomically
from protocol.terminal import Outcome

SAMPLE = 1_000
SHEET = 60
_THUMBNAIL_PIXELS = 160
_FIRST = 3
#: What differs between two images that are skipped for one reason.
_PARTICULAR = re.compile(r"^.*?: (?=\S)|\s*\(.*|, got .*")


@dataclass(frozen=True, slots=True)
class Look:
    """One image as it was found: its format and size, or why it cannot be read."""

    format: str = ""
    width: int = 0
    height: int = 0
    identifying: tuple[str, ...] = ()
    burned_in: bool = False
    skip: Skip | None = None


@dataclass(frozen=True, slots=True)
class Inspection:
    """A folder of pairs, and a look at some or all of its images."""

    folder: PairFolder
    looks: tuple[Look, ...]

    def data(self) -> dict[str, Any]:
        """All that was found, for programs."""
        pairs, seen = self.folder.pairs, [one for one in self.looks if one.skip is None]
        skips = (*self.folder.skipped, *(one.skip for one in self.looks if one.skip))
        splits = Counter(str(pair.split) for pair in pairs)
        tags = sorted({tag for one in seen for tag in one.identifying})
        words = [len(caption.split()) for pair in pairs for caption in pair.captions]
        return {
            "folder": str(self.folder.root),
            "form": self.folder.form,
            "pairs": len(pairs),
            "splits": {split: splits[split] for split in SPLITS},
            "sites": dict(sorted(Counter(pair.site for pair in pairs if pair.site).items())),
            "groups": len({pair.group for pair in pairs if pair.group is not None}),
            "captions_per_image": _spread(len(pair.captions) for pair in pairs),
            "words_per_caption": _spread(words),
            "looked_at": len(self.looks),
            "formats": dict(Counter(one.format for one in seen).most_common()),
            "width": _spread(one.width for one in seen),
            "height": _spread(one.height for one in seen),
            "identifying_tags": tags,
            "skipped": _reasons(skips),
            "notices": [*self.folder.notices, *_notices(seen)],
        }

    def outcome(self) -> Outcome:
        """The same, and for people."""
        data = self.data()
        lines = [f"{data['folder']}: {data['form']}, {data['pairs']:,} pairs"]
        for name in ("splits", "sites", "formats"):
            lines.append(f"  {name:<10} {_counts(data[name])}")
        lines += [
            f"  groups     {data['groups']:,}",
            f"  captions   {_shown(data['captions_per_image'])} an image, "
            f"{_shown(data['words_per_caption'])} words each",
            f"  pixels     {_shown(data['width'])} wide, {_shown(data['height'])} high; "
            f"{data['looked_at']:,} of {data['pairs']:,} images were decoded",
        ]
        if data["identifying_tags"]:
            lines.append(f"  dropped    {', '.join(data['identifying_tags'])}")
        for one in data["skipped"]:
            lines.append(f"  skipped    {one['count']:,}: {one['why']}")
            lines += [f"             {first}" for first in one["first"]]
        lines += [f"  notice     {notice}" for notice in data["notices"]]
        return Outcome("\n".join(lines), data)


def inspect_folder(
    folder: PairFolder, count: int, progress: Callable[[int], None] = lambda done: None
) -> Inspection:
    """Decode ``count`` of the images, evenly spread; ``progress`` is told how many are done."""
    looks = []
    with ThreadPoolExecutor() as pool:
        for look in pool.map(lambda pair: _look(folder, pair), _spaced(folder.pairs, count)):
            looks.append(look)
            progress(len(looks))
    return Inspection(folder, tuple(looks))


def write_sheet(folder: PairFolder, path: Path) -> None:
    """Write up to SHEET images with their captions as one HTML file that loads nothing else.

    It shows private images: the file is its owner's alone (mode 0600).
    """
    write_atomically(path, "".join(_sheet(folder)))


def _look(folder: PairFolder, pair: Pair) -> Look:
    path = folder.path(pair)
    try:
        format_, width, height = measure_image(path)
        load_image(path, 32)  # what is damaged shows only when it is decoded
        if format_ != DICOM:
            return Look(format_, width, height)
        from client.institution.formats.dicom_header import identifying

        return Look(format_, width, height, *identifying(folder.read(pair)))
    except (DataError, OSError) as error:
        return Look(skip=Skip(pair.file_name, str(error)))


def _spaced(pairs: Sequence[Pair], count: int) -> list[Pair]:
    step = max(1.0, len(pairs) / max(1, count))
    return [pairs[int(i * step)] for i in range(min(count, len(pairs)))]


def _spread(values: Iterable[int]) -> dict[str, float]:
    found = sorted(values) or [0]
    return {"least": found[0], "median": median(found), "most": found[-1]}


def _shown(spread: dict[str, float]) -> str:
    least, most = spread["least"], spread["most"]
    return f"{least:g}" if least == most else f"{least:g} to {most:g} (median {spread['median']:g})"


def _counts(found: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in found.items()) or "none"


def _reasons(skips: Iterable[Skip]) -> list[dict[str, Any]]:
    """Skips by reason, the most frequent first, with the first few of each."""
    found: dict[str, list[Skip]] = defaultdict(list)
    for skip in skips:
        found[_PARTICULAR.sub("", skip.why) or skip.why].append(skip)
    return [
        {"why": why, "count": len(some), "first": [str(skip) for skip in some[:_FIRST]]}
        for why, some in sorted(found.items(), key=lambda item: -len(item[1]))
    ]


def _notices(looks: Sequence[Look]) -> Iterator[str]:
    dicom = [one for one in looks if one.format == DICOM]
    if dicom:
        yield "of a DICOM file with several frames only the middle frame is used"
    if burned := sum(one.burned_in for one in dicom):
        yield (
            f"{burned:,} of {len(dicom):,} DICOM images say that text is burned into their "
            "pixels: a thumbnail would show it"
        )


def _sheet(folder: PairFolder) -> Iterator[str]:
    title = html.escape(f"{folder.root.name}: {folder.form}, {len(folder.pairs):,} pairs")
    yield (
        "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        "<meta http-equiv=Content-Security-Policy content=\"default-src 'none'; img-src data:; "
        "style-src 'unsafe-inline'\">"
        "<style>:root{color-scheme:light dark}body{font:16px system-ui;margin:2rem}"
        "main{display:grid;grid-template-columns:repeat(auto-fill,minmax(160px,1fr));gap:1rem}"
        "figure{margin:0}img{max-width:100%;border-radius:8px}figcaption{font-size:.85rem;"
        "overflow-wrap:anywhere}</style>"
        f"<title>{title}</title><h1>{title}</h1><main>"
    )
    for pair in _spaced(folder.pairs, SHEET):
        said = "<br>".join(html.escape(caption[:300]) for caption in pair.captions[:5])
        yield (
            f"<figure>{_thumbnail(folder.path(pair))}<figcaption>{said}<br><small>"
            f"{html.escape(pair.file_name)} · {pair.split}</small></figcaption></figure>"
        )
    yield "</main>"


def _thumbnail(path: Path) -> str:
    try:
        image = load_image(path)
    except DataError as error:
        return f"<em>{html.escape(error.message)}</em>"
    image.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85)
    return f"<img alt='' src='data:image/jpeg;base64,{b64encode(encoded.getvalue()).decode()}'>"
