"""The epoch before: what a new epoch may share with it, file by file, as hard links."""

import errno
import os
import shutil
from bisect import bisect_left
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)


@dataclass(frozen=True)
class Predecessor:
    """An epoch in ``folder`` with ``items`` items, of which ``touched`` show something else now.

    ``touched`` are positions, those that are new or gone too; None where nobody knows them.
    ``damaged`` files are not shared.
    """

    folder: Path
    items: int
    touched: Collection[int] | None = None
    damaged: Collection[str] = ()

    def keeps(self, start: int, stop: int, size: int) -> bool:
        """Say whether the segment of ``size`` rows at ``start`` holds the same, up to ``stop``."""
        if self.touched is None or min(self.items, start + size) != stop:
            return False
        at = bisect_left(self._sorted, start)
        return at == len(self._sorted) or self._sorted[at] >= stop

    @cached_property
    def _sorted(self) -> list[int]:
        return sorted(self.touched or ())


def share(source: Path, target: Path) -> None:
    """Give a file a second name; where the file system has no hard links, copy it."""
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        partial = target.with_name(f".{target.name}.copy")
        shutil.copyfile(source, partial)
        partial.chmod(0o600)
        with partial.open("rb") as file:
            os.fsync(file)
        partial.replace(target)
