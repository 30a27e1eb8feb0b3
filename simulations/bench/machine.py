"""How fast this machine reads memory: the floor under every scan of an index."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.compiled import kernel


@dataclass(frozen=True)
class Roofline:
    """What a scan had to read, in bytes, and how long it took beside reading alone."""

    size: int
    threads: int
    one_thread_seconds: float
    read_seconds: float
    scan_seconds: float

    @property
    def fraction(self) -> float:
        """The share of the bandwidth that the scan reached."""
        return self.read_seconds / self.scan_seconds

    def figures(self) -> dict[str, float]:
        """Gigabytes a second, and milliseconds at the floor and of the scan."""
        return {
            "bytes": self.size,
            "threads": self.threads,
            "one_thread_gb_s": self.size / self.one_thread_seconds / 1e9,
            "bandwidth_gb_s": self.size / self.read_seconds / 1e9,
            "floor_ms": 1e3 * self.read_seconds,
            "scan_ms": 1e3 * self.scan_seconds,
        }


def read_seconds(blocks: NDArray[np.uint32], threads: int) -> float:
    """Return the seconds in which ``threads`` read all of ``blocks`` again, summing the words.

    The very memory that the scan reads is read here: where it fits into a cache, both profit.
    """
    words = blocks.reshape(-1).view(np.uint64)
    parts = np.array_split(words, threads)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(_sum, parts))  # starts the threads, and leaves in a cache what fits
        since = time.perf_counter()
        list(pool.map(_sum, parts))
        return time.perf_counter() - since


@kernel
def _sum(words):  # type: ignore[no-untyped-def]
    total = np.uint64(0)
    for word in words:
        total += word
    return total
