"""Whether there is room for a benchmark: asked before anything is drawn or written."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import psutil

from protocol.errors import StorageError, UsageError
from protocol.params import Preset
from protocol.plan import Costs, best, plans
from protocol.wire import MAX_ITEMS

_WORD_BYTES, _SCORE_BYTES = 4, 8
_PAIR_BYTES = 160
_ROW_BYTES = 40  # of SQLite
_BASE_BYTES = 768 << 20
"""Two processes with their libraries, and the peers' keys and plaintexts."""


@dataclass(frozen=True)
class Room:
    """What ``folder`` and this machine have left, in bytes."""

    folder: Path
    disk: int
    memory: int

    @classmethod
    def in_folder(cls, folder: Path) -> "Room":
        """Look at the disk under ``folder`` and at the memory of this machine."""
        return cls(folder, shutil.disk_usage(folder).free, psutil.virtual_memory().available)

    def check(self, preset: Preset, items: int, dim: int, goal: str, queries: int) -> None:
        """Raise unless ``items`` vectors of width ``dim`` can be indexed and searched here.

        :class:`UsageError` for numbers that cannot be or that the memory does not hold,
        :class:`StorageError` for a disk that is too full.
        """
        if items > MAX_ITEMS:
            raise UsageError(f"an index has at most {MAX_ITEMS:,} items, got {items:,}")
        plan = best(plans(preset, dim, items, Costs()), goal)
        vectors = _WORD_BYTES * items * dim
        # The vectors stay. First the pairs lie beside them, then the scores of every question and
        # what is made of one. Both files are mapped: they take what memory is left.
        scores = (queries + 4) * _SCORE_BYTES * items + plan.layout.download_bytes
        memory = vectors + max(_PAIR_BYTES * items, scores) + _BASE_BYTES
        if memory > self.memory:
            raise UsageError(
                f"{items:,} vectors of width {dim} and {queries:,} questions take {_gb(memory)} "
                f"of memory, {_gb(self.memory)} are available",
                "Choose fewer --items or --queries.",
            )
        disk = plan.index_bytes + vectors + _ROW_BYTES * items
        if disk > self.disk:
            raise StorageError(
                f"no space left: an index of {items:,} vectors of width {dim} takes {_gb(disk)} "
                f"in {self.folder}, {_gb(self.disk)} are free",
                "Free some space, choose fewer --items, or set TMPDIR to a folder with more room.",
            )


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
