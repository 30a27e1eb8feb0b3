"""An institution's private image-text pairs, in whichever form it keeps them.

``read_pairs`` finds out the form of a folder: the imagefolder convention (``metadata.jsonl``),
COCO captions, Karpathy's splits, Flickr's token files, tables, WebDataset shards or DICOM studies
(``client.institution.formats``). The folder may come from somebody else, so nothing in it is
trusted: sizes are checked before anything is read, and names stay inside the folder.
"""

import filecmp
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client.institution.formats.checks import checked_name, inside, is_regular
from client.institution.formats.stored import read_stored
from protocol.errors import DataError
from protocol.files import replace_atomically, write_atomically, writing

METADATA = "metadata.jsonl"
SPLITS = ("train", "val", "test")
FORMS = ("id", "caption", "thumbnail", "original")
"""In which an item may leave the institution, apart from its score."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One image and what is said of it.

    ``file_name`` is relative to the folder, with forward slashes. ``group`` is the patient, the
    product or whatever else several images show. A ``split`` of None is replaced by one that
    follows from the group where there is one, else from the file name: so a pair always has a
    split, keeps it when the folder grows, and shares it with its group. ``release`` names those
    of ``FORMS`` in which it may leave; None says nothing of it.
    """

    file_name: str
    captions: tuple[str, ...]
    split: str | None = None
    site: str | None = None
    group: str | None = field(default=None, repr=False)
    release: frozenset[str] | None = None

    def __post_init__(self) -> None:
        if self.split is None:
            named = self.file_name if self.group is None else self.group
            object.__setattr__(self, "split", default_split(named))


@dataclass(frozen=True, slots=True)
class Skip:
    """Something that was left out: ``where`` it stood, and ``why``."""

    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


@dataclass(frozen=True, slots=True)
class PairFolder:
    """The usable pairs of one folder, in the order in which they are described, and what was not.

    ``root`` is the folder that names are relative to; ``notices`` is what its owner should know.
    """

    root: Path
    pairs: tuple[Pair, ...]
    skipped: tuple[Skip, ...] = ()
    notices: tuple[str, ...] = ()
    form: str = "imagefolder"

    def split(self, name: str) -> tuple[Pair, ...]:
        """The pairs of one split: ``train``, ``val`` or ``test``."""
        return tuple(pair for pair in self.pairs if pair.split == name)

    @property
    def sites(self) -> tuple[str, ...]:
        """The natural institutions that are named here, sorted."""
        return tuple(sorted({pair.site for pair in self.pairs if pair.site is not None}))

    def path(self, pair: Pair) -> Path:
        """Where the image of ``pair`` lies; in a shard, ``…/shard.tar/member``."""
        return self.root / pair.file_name

    def read(self, pair: Pair) -> bytes:
        """The bytes of its image, at most IMAGE_BYTES; DataError for more, OSError for none."""
        return read_stored(self.path(pair))


def default_split(name: str) -> str:
    """The split of an image that has none: 80 % train, 10 % val, 10 % test, by a name."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    tenth = int.from_bytes(digest, "little") % 10
    return "test" if tenth == 9 else "val" if tenth == 8 else "train"


def read_pairs(root: Path, group_key: str = "group") -> PairFolder:
    """Reads and checks what describes the pairs of ``root``; decodes no image.

    ``root`` is a folder or the describing file in it; ``group_key`` the name under which groups
    stand there. A group whose items lie in several declared splits is a topic and not one thing:
    then no groups are used, and a notice says so. Raises DataError, with file and line, when
    nothing is recognised, when a line is broken, has a wrong type or a name that leaves the
    folder, or when nothing usable is left.
    """
    # The forms build on this module.
    from client.institution.formats.collection import Collection
    from client.institution.formats.forms import recognise

    folder, form, sources = recognise(root)
    collection = Collection(folder, form.SEARCHES)
    for entry in form.entries(folder, sources, group_key):
        collection.add(entry)
    pairs, skipped, notices = collection.finish(group_key)
    if not pairs:
        first = f"; the first: {skipped[0]}" if skipped else ""
        raise DataError(
            f"{sources[0]}: no usable pair, {len(skipped)} skipped{first}",
            'write a line per image: {"file_name": "images/a.png", "captions": ["…"]}',
        )
    return PairFolder(folder, pairs, skipped, notices, form.NAME)


def stamp(root: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, time of change [ns] and size [bytes] of all that describes the pairs of ``root``.

    Another stamp means that they must be read again. Raises DataError where there is nothing.
    """
    from client.institution.formats.forms import recognise

    _, _, sources = recognise(root)
    try:
        found = [(path, path.stat()) for path in sources]
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from error
    return tuple((str(path), status.st_mtime_ns, status.st_size) for path, status in found)


def write_pairs(root: Path, pairs: Iterable[Pair], copy_from: Path | PairFolder | None) -> None:
    """Writes ``root/metadata.jsonl`` in one step, after the images that it names.

    The images are hard-linked from the folder ``copy_from``, or copied where links do not
    reach; None says that they lie in ``root`` already. Groups are written as numbers, for what
    they are called may be a patient's name. Raises DataError for an image that is not there or
    would replace another one, StorageError when the disk is full or refuses.
    """
    chosen = list(pairs)
    source = copy_from.root if isinstance(copy_from, PairFolder) else copy_from
    numbers: dict[str, int] = {}
    for pair in chosen:
        if pair.group is not None:
            numbers.setdefault(pair.group, len(numbers) + 1)
    with writing(root):
        root.mkdir(parents=True, exist_ok=True)
        if source is not None:
            for pair in chosen:
                _place(pair.file_name, source, root)
        with replace_atomically(root / METADATA) as file:
            file.writelines(_line(pair, numbers) for pair in chosen)


def _line(pair: Pair, numbers: dict[str, int]) -> bytes:
    fields: dict[str, Any] = {"file_name": pair.file_name, "captions": list(pair.captions)}
    fields["split"] = pair.split
    if pair.site is not None:
        fields["site"] = pair.site
    if pair.group is not None:
        fields["group"] = numbers[pair.group]
    if pair.release is not None:
        fields["release"] = sorted(pair.release)
    return json.dumps(fields, ensure_ascii=False).encode() + b"\n"


def _place(file_name: str, copy_from: Path, root: Path) -> None:
    """Hard-links or copies one image into ``root``; one that is there already is left alone."""
    name = checked_name(file_name, f"{copy_from}")
    source = inside(os.path.realpath(copy_from), name, f"{copy_from}")
    target = root / name
    if not is_regular(source):
        return _unpack(copy_from / name, target)
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        if not filecmp.cmp(source, target, shallow=False):
            raise _occupied(target) from None
    except OSError:  # another disk, or one that knows no links
        partial = target.with_name(f".{target.name}.partial")
        shutil.copyfile(source, partial)
        partial.replace(target)
    return None


def _unpack(source: Path, target: Path) -> None:
    """Writes an image that is no file of its own."""
    try:
        content = read_stored(source)
    except OSError:
        raise DataError(f"no such image: {source}", "read the folder again, then repeat") from None
    if target.exists() and target.read_bytes() != content:
        raise _occupied(target)
    write_atomically(target, content)


def _occupied(target: Path) -> DataError:
    return DataError(f"{target} is there already and is another image", "choose an empty folder")
