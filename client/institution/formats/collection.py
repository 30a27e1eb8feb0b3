"""What a form says, checked entry by entry, becomes pairs.

Two kinds of trouble: what is merely unusable (a missing image, an empty caption) is skipped,
counted and reported; what is broken ends the read, for silently training on half of the data
would be worse.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, TypedDict

from client.institution.formats.checks import checked_name, inside, is_regular, is_text, wrong
from client.institution.formats.stored import is_stored
from client.institution.pairs import Pair, Skip
from protocol.errors import DataError

SITE_LETTERS = 100
GROUP_LETTERS = 200
_SPLITS = {
    "train": ("train", "restval"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test",),
}
#: Every name that a split goes by.
SPLIT_NAMES = {name: split for split, names in _SPLITS.items() for name in names}
_NAMED = re.compile(f"(?<![a-z])({'|'.join(SPLIT_NAMES)})(?![a-z])")
_FOLDERS = 64
#: A patient or a product has no such part of the data.
_LARGE_SHARE, _LARGE_COUNT = 0.1, 50


@dataclass(frozen=True, slots=True)
class Entry:
    """One image as ``source`` describes it ``at`` some place; ``name`` is not yet checked.

    ``near`` is the name of the folder in which the image is looked for first.
    """

    source: Path
    at: str
    name: object
    captions: tuple[str, ...]
    split: str | None = None
    site: str | None = None
    group: str | None = None
    near: str = ""
    release: frozenset[str] | None = None

    @property
    def where(self) -> str:
        """The place for messages."""
        return f"{self.source}, {self.at}"


class Collection:
    """Takes entries one by one; ``finish`` gives the pairs, the skips and the notices.

    With ``searches`` an image that does not lie where its name says is looked for in the folders
    below.
    """

    def __init__(self, root: Path, searches: bool) -> None:
        self._root, self._real_root = root, os.path.realpath(root)
        self._folders = _below(root) if searches else []
        self._last: dict[Path, str] = {}
        self._pairs: dict[str, Pair] = {}
        self._declared: dict[str, str | None] = {}
        self._seen: dict[str, tuple[Path, str]] = {}
        self._skipped: list[Skip] = []

    def add(self, one: Entry | Skip) -> None:
        """Check one entry; raises DataError for a bad name or an image that was there before."""
        if isinstance(one, Skip):
            self._skipped.append(one)
            return
        name = self._locate(checked_name(one.name, one.where), one)
        if name in self._seen:
            source, at = self._seen[name]
            before = at if source == one.source else f"{source.name}, {at}"
            raise DataError(
                f"{one.where}: {name!r} was already described in {before}; expected one entry "
                "for each image",
                'put all its sentences into one: "captions": ["…", "…"]',
            )
        self._seen[name] = one.source, one.at
        image = inside(self._real_root, name, one.where)
        if not any(one.captions):
            self._skipped.append(Skip(one.where, f"{name}: no caption, or only empty ones"))
        elif not is_stored(image):
            self._skipped.append(Skip(one.where, f"{name}: no such image file"))
        else:
            group = one.group
            if group is None and name.lower().endswith(".dcm"):
                from client.institution.formats.dicom_header import group_of  # takes a while

                group = group_of(image)
            said = tuple(caption for caption in one.captions if caption)
            self._pairs[name] = Pair(name, said, one.split, one.site, group, one.release)
            self._declared[name] = one.split

    def finish(self, group_key: str) -> tuple[tuple[Pair, ...], tuple[Skip, ...], tuple[str, ...]]:
        """All pairs in order, with splits that follow groups where groups are things."""
        splits: dict[str, set[str]] = defaultdict(set)
        for name, pair in self._pairs.items():
            split = self._declared[name]
            if pair.group is not None and split is not None:
                splits[pair.group].add(split)
        torn = sum(len(found) > 1 for found in splits.values())
        if torn:
            pairs = tuple(
                replace(pair, group=None, split=self._declared[name])
                for name, pair in self._pairs.items()
            )
            notice = (
                f"{torn:,} values of {group_key!r} have items in several splits, so it names a "
                "topic and not one thing: groups are not used. If it names a patient or a "
                "product, correct the splits, for they leak."
            )
            return pairs, tuple(self._skipped), (notice,)
        pairs = tuple(
            replace(pair, split=next(iter(splits[pair.group])))
            if self._declared[name] is None and pair.group in splits
            else pair
            for name, pair in self._pairs.items()
        )
        return pairs, tuple(self._skipped), _large_groups(pairs, group_key)

    def _locate(self, name: str, one: Entry) -> str:
        """The name, with the folder before it in which the image is found, if it is."""
        if not self._folders:
            return name
        near = [folder for folder in self._folders if folder.rsplit("/", 1)[-1] == one.near]
        for folder in (*near, "", self._last.get(one.source, ""), *self._folders):
            path = PurePosixPath(folder, name).as_posix()
            if is_regular(self._root / path):
                self._last[one.source] = folder
                return path
        return name


class Fields(TypedDict):
    """What an entry may say beside its captions."""

    split: str | None
    site: str | None
    group: str | None


def fields(found: Mapping[str, Any], where: str, group_key: str) -> Fields:
    """``split``, ``site`` and ``group`` of an entry, checked; DataError for a wrong one."""
    split, site, group = found.get("split"), found.get("site"), found.get(group_key)
    if split is not None:
        known = SPLIT_NAMES.get(split.strip().lower()) if isinstance(split, str) else None
        if known is None:
            raise wrong(f"{where}: split", 'one of "train", "val", "test", or nothing', split)
        split = known
    if site is not None and not _is_site(site):
        raise wrong(
            f"{where}: site", f"a plain name of at most {SITE_LETTERS} letters, or nothing", site
        )
    if type(group) is int and abs(group) < 1 << 63:
        group = str(group)
    if group is not None and not (is_text(group) and len(group) <= GROUP_LETTERS):
        expected = f"a text of at most {GROUP_LETTERS} letters, a whole number, or nothing"
        raise wrong(f"{where}: {group_key}", expected, group)
    return {"split": split, "site": site, "group": group or None}


def captions_of(found: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """``captions`` (a list), or ``caption`` or ``text``, stripped; DataError for other types."""
    key = next((key for key in ("captions", "caption", "text") if key in found), "captions")
    captions = found.get(key)
    if key != "captions":
        captions = [captions]
    if not isinstance(captions, list) or not all(map(is_text, captions)):
        expected = "a list of strings" if key == "captions" else "a string"
        raise wrong(f"{where}: {key}", expected, found.get(key))
    return tuple(stripped for caption in captions if (stripped := caption.strip()))


def split_in(name: str) -> str | None:
    """The split that a file's name tells: ``captions_val2017.json`` is of ``val``."""
    found = _NAMED.search(name.lower())
    return SPLIT_NAMES[found[1]] if found else None


def _is_site(value: object) -> bool:
    """Whether this can name an institution, and so a folder and a line in a log."""
    return (
        is_text(value)
        and 0 < len(value.strip()) <= len(value) <= SITE_LETTERS
        and value.isprintable()
        and not set(value) & set("/\\")
        and value not in (".", "..")
    )


def _below(root: Path) -> list[str]:
    """Folders on the two levels below, links left out: those named for images come first."""
    found: list[str] = []
    for parent, folders, _ in os.walk(root):
        deep = Path(parent).relative_to(root)
        folders[:] = sorted(one for one in folders if not one.startswith("."))
        found += [(deep / one).as_posix() for one in folders if not Path(parent, one).is_symlink()]
        if len(deep.parts) == 1:
            folders.clear()
    named = ("image", "img", "flick")
    return sorted(found, key=lambda one: (not one.lower().startswith(named), one))[:_FOLDERS]


def _large_groups(pairs: tuple[Pair, ...], group_key: str) -> tuple[str, ...]:
    sizes = Counter(pair.group for pair in pairs if pair.group is not None)
    largest = max(sizes.values(), default=0)
    if largest < max(_LARGE_COUNT, _LARGE_SHARE * len(pairs)):
        return ()
    return (
        f"one value of {group_key!r} has {largest:,} of {len(pairs):,} items, all in one split "
        "and never each other's negatives; if it names a topic and not a patient or a product, "
        "name another key",
    )
