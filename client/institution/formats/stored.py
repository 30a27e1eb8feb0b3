"""The bytes of one image, wherever its form keeps them."""

from pathlib import Path

from client.institution.formats import shard
from client.institution.formats.checks import is_regular
from protocol.files import read_bounded
from protocol.model.pictures import IMAGE_BYTES


def read_stored(path: Path) -> bytes:
    """The bytes at ``path``: a file, or ``…/shard.tar/member``.

    Raises DataError for more than IMAGE_BYTES or for no plain file, OSError for what is missing.
    """
    place = _in_shard(path)
    if place is not None:
        return shard.read_member(*place, IMAGE_BYTES)
    return read_bounded(path, IMAGE_BYTES, "store the image smaller, as JPEG or PNG")


def stored_stamp(path: Path) -> tuple[int, int]:
    """Size [bytes] and time of change [ns] of what holds an image: its file, or its shard."""
    place = _in_shard(path)
    status = (path if place is None else place[0]).stat()
    return status.st_size, status.st_mtime_ns


def is_stored(path: Path) -> bool:
    """Whether something lies there that :func:`read_stored` may read."""
    place = _in_shard(path)
    return is_regular(path) if place is None else place[1] in shard.members(place[0])


def _in_shard(path: Path) -> tuple[Path, str] | None:
    if f"{shard.SUFFIX}/" not in str(path):
        return None
    for parent in path.parents:
        if parent.suffix == shard.SUFFIX and is_regular(parent):
            return parent, path.relative_to(parent).as_posix()
    return None
