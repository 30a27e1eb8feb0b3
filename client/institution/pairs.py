"""An institution's private image-text pairs: a folder of images with ``metadata.jsonl``.

A line of ``metadata.jsonl`` (UTF-8) describes one image, in the imagefolder convention::

    {"file_name": "images/a.png", "captions": ["a cat", "pet"], "split": "train", "site": "clinic"}

``caption`` or ``text`` (one string) may stand for ``captions``; ``split`` and ``site`` may be
missing; unknown keys are ignored. The folder may come from somebody else, so nothing in it is
trusted: sizes are checked before anything is read, and names stay inside the folder. What is
merely unusable (a missing image, an empty caption) is skipped, counted and reported; what is
broken ends the read, for silently training on half of the data would be worse.
"""

import filecmp
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from protocol.errors import DataError
from protocol.files import check_file, replace_atomically, writing

METADATA = "metadata.jsonl"
METADATA_BYTES = 512 << 20
LINE_BYTES = 1 << 20
SITE_LETTERS = 100
SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Pair:
    """One image and what is said of it.

    ``file_name`` is relative to the folder, with forward slashes. A ``split`` of None is
    replaced by one that follows from the file name, so that a pair always has a split and
    keeps it when the folder grows.
    """

    file_name: str
    captions: tuple[str, ...]
    split: str | None = None
    site: str | None = None

    def __post_init__(self) -> None:
        if self.split is None:
            object.__setattr__(self, "split", default_split(self.file_name))


@dataclass(frozen=True, slots=True)
class Skip:
    """Something that was left out: ``where`` it stood, and ``why``."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


@dataclass(frozen=True, slots=True)
class PairFolder:
    """The usable pairs of one folder, in the order of its metadata, and what was skipped."""

    root: Path
    pairs: tuple[Pair, ...]
    skipped: tuple[Skip, ...] = ()

    def split(self, name: str) -> tuple[Pair, ...]:
        """The pairs of one split: ``train``, ``val`` or ``test``."""
        return tuple(pair for pair in self.pairs if pair.split == name)

    @property
    def sites(self) -> tuple[str, ...]:
        """The natural institutions that are named here, sorted."""
        return tuple(sorted({pair.site for pair in self.pairs if pair.site is not None}))

    def path(self, pair: Pair) -> Path:
        """Where the image of ``pair`` lies."""
        return self.root / pair.file_name


def default_split(file_name: str) -> str:
    """The split of an image that has none: 80 % train, 10 % val, 10 % test, by its name."""
    digest = hashlib.blake2b(file_name.encode(), digest_size=8).digest()
    tenth = int.from_bytes(digest, "little") % 10
    return "test" if tenth == 9 else "val" if tenth == 8 else "train"


def read_pairs(root: Path) -> PairFolder:
    """Reads and checks ``root/metadata.jsonl``; opens no image.

    Raises DataError, with file and line, when there is no such folder or file, when a line is
    broken, has a wrong type or a name that leaves the folder, or when nothing usable is left.
    """
    metadata = root / METADATA
    if not root.is_dir():
        raise DataError(
            f"no such folder: {root}", "give the folder that holds metadata.jsonl and the images"
        )
    real_root = os.path.realpath(root)
    pairs: dict[str, Pair] = {}
    skipped: list[Skip] = []
    lines: dict[str, int] = {}
    for number, line in _lines(metadata):
        where = f"{metadata}, line {number}"
        pair = _pair(_decode(line, where), where)
        if pair.file_name in lines:
            raise DataError(
                f"{where}: {pair.file_name!r} was already described in line "
                f"{lines[pair.file_name]}; expected one line per image",
                'put all its sentences into one line: "captions": ["…", "…"]',
            )
        lines[pair.file_name] = number
        image = _inside(real_root, pair.file_name, where)
        if not pair.captions:
            skipped.append(Skip(where, f"{pair.file_name}: no caption, or only empty ones"))
        elif not _is_regular(image):
            skipped.append(Skip(where, f"{pair.file_name}: no such image file"))
        else:
            pairs[pair.file_name] = pair
    if not pairs:
        first = f"; the first: {skipped[0]}" if skipped else ""
        raise DataError(
            f"{metadata}: no usable pair, {len(skipped)} skipped{first}",
            'write a line per image: {"file_name": "images/a.png", "captions": ["…"]}',
        )
    return PairFolder(root, tuple(pairs.values()), tuple(skipped))


def write_pairs(root: Path, pairs: Iterable[Pair], copy_from: Path | None) -> None:
    """Writes ``root/metadata.jsonl`` in one step, after the images that it names.

    The images are hard-linked from the folder ``copy_from``, or copied where links do not
    reach; None says that they lie in ``root`` already. Raises DataError for an image that is
    not there or would replace another one, StorageError when the disk is full or refuses.
    """
    chosen = list(pairs)
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        if copy_from is not None:
            for pair in chosen:
                _place(pair.file_name, copy_from, root)
        with replace_atomically(root / METADATA) as file:
            file.writelines(_line(pair) for pair in chosen)


def _lines(metadata: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank; no more than the bounds is ever in memory."""
    try:
        check_file(metadata, METADATA_BYTES, "split the data among several folders")
        with metadata.open("rb") as file:
            number = 0
            while line := file.readline(LINE_BYTES + 1):
                number += 1
                if len(line) > LINE_BYTES:
                    raise DataError(
                        f"{metadata}, line {number}: longer than {LINE_BYTES:,} bytes",
                        "write one JSON object a line, one image each",
                    )
                if line.strip():
                    yield number, line
    except OSError as error:
        raise DataError(
            f"{metadata}: cannot be read: {error.strerror}",
            'put a readable metadata.jsonl beside the images, a line each: {"file_name": '
            '"images/a.png", "captions": ["…"]}',
        ) from error


def _decode(line: bytes, where: str) -> dict[str, Any]:
    """One line as a JSON object."""
    try:
        found = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{where}: not a JSON object: {error}",
            "repair or remove this line; nothing was read from the rest",
        ) from error
    if not isinstance(found, dict):
        raise _wrong(where, "a JSON object", found)
    return found


def _pair(found: dict[str, Any], where: str) -> Pair:
    """Checks the fields; captions come out stripped, without the empty ones."""
    name = found.get("file_name")
    if not _is_text(name):
        raise _wrong(f"{where}: file_name", "a string", name)
    key = next((key for key in ("captions", "caption", "text") if key in found), "captions")
    captions = found.get(key)
    if key != "captions":
        captions = [captions]
    if not isinstance(captions, list) or not all(_is_text(caption) for caption in captions):
        expected = "a list of strings" if key == "captions" else "a string"
        raise _wrong(f"{where}: {key}", expected, found.get(key))
    split, site = found.get("split"), found.get("site")
    if split is not None and split not in SPLITS:
        raise _wrong(f"{where}: split", 'one of "train", "val", "test", or nothing', split)
    if site is not None and not _is_site(site):
        raise _wrong(
            f"{where}: site", f"a plain name of at most {SITE_LETTERS} letters, or nothing", site
        )
    said = tuple(caption.strip() for caption in captions if caption.strip())
    return Pair(_checked_name(name, where), said, split, site)


def _is_text(value: object) -> TypeGuard[str]:
    """Whether this is a string that can be written as UTF-8 (JSON may escape half a letter)."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_site(value: object) -> TypeGuard[str]:
    """Whether this can name an institution, and so a folder and a line in a log."""
    return (
        _is_text(value)
        and 0 < len(value.strip()) <= len(value) <= SITE_LETTERS
        and value.isprintable()
        and not set(value) & set("/\\")
        and value not in (".", "..")
    )


def _checked_name(name: str, where: str) -> str:
    """The file name in its one canonical spelling, if it is a relative path without tricks."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or set(name) & set("\\\0"):
        raise DataError(
            f"{where}: file_name: expected a relative path with forward slashes and without "
            f"'..', got {_shown(name)}",
            'write it relative to metadata.jsonl: "images/a.png"',
        )
    return path.as_posix()


def _inside(real_root: str, name: str, where: str) -> Path:
    """The image's own path, once every symbolic link on the way is followed."""
    real = Path(os.path.realpath(f"{real_root}/{name}"))
    if not real.is_relative_to(real_root):
        raise DataError(
            f"{where}: {name!r} is a link that leads out of the folder",
            "copy the image into the folder in place of the link",
        )
    return real


def _is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _wrong(where: str, expected: str, got: object) -> DataError:
    found = "nothing" if got is None else f"{_shown(got)} ({type(got).__name__})"
    return DataError(
        f"{where}: expected {expected}, got {found}",
        'a line looks like {"file_name": "images/a.png", "captions": ["…"], "split": "train"}',
    )


def _line(pair: Pair) -> bytes:
    fields: dict[str, Any] = {"file_name": pair.file_name, "captions": list(pair.captions)}
    fields["split"] = pair.split
    if pair.site is not None:
        fields["site"] = pair.site
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def _place(file_name: str, copy_from: Path, root: Path) -> None:
    """Hard-links or copies one image into ``root``; one that is there already is left alone."""
    name = _checked_name(file_name, f"{copy_from}")
    source = _inside(os.path.realpath(copy_from), name, f"{copy_from}")
    target = root / name
    if not _is_regular(source):
        raise DataError(f"no such image: {copy_from / name}", "read the folder again, then repeat")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        if not filecmp.cmp(source, target, shallow=False):
            raise DataError(
                f"{target} is there already and is another image", "choose an empty folder"
            ) from None
    except OSError:  # another disk, or one that knows no links
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(source, partial)
        partial.replace(target)
