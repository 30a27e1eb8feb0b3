"""What remains of secret keys in files, messages and another process's memory."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zstandard
from numpy.typing import NDArray

from protocol.params import PRIVATE

RUN = 8
"""So many words of a key in their order are no chance: each has 27 bits."""

_REGION = 1 << 24
_WORDS = len(PRIVATE.moduli) * PRIVATE.ring_degree


class Keys:
    """Secret keys as SEAL holds them, looked for as words of 64 and of 32 bits."""

    def __init__(self, saved: list[bytes]) -> None:
        self._words = np.concatenate([_residues(one) for one in saved])
        self._known = np.zeros(1 << 27, bool)  # every prime is below
        self._known[self._words] = True
        self._places: dict[int, list[int]] = {}
        for place, word in enumerate(self._words.tolist()):
            self._places.setdefault(word, []).append(place)

    def found(self, data: bytes) -> set[int]:
        """Of which keys there are eight neighbours or more; they are numbered as they came."""
        found = set()
        for kind, size in (("<u8", 8), ("<u4", 4)):
            words = np.frombuffer(data, kind, len(data) // size)
            small = np.flatnonzero((words > 0) & (words < 1 << 27))
            hits = small[self._known[words[small]]]
            for at in hits[: -RUN + 1][hits[RUN - 1 :] - hits[: -RUN + 1] == RUN - 1].tolist():
                for place in self._places[int(words[at])]:
                    if np.array_equal(words[at : at + RUN], self._words[place : place + RUN]):
                        found.add(place // _WORDS)
        return found


def _residues(saved: bytes) -> NDArray[np.uint64]:
    """The words of a secret key in SEAL's own file: of each prime 4096, in NTT form."""
    body = saved[16:]
    if saved[5] == 2:
        body = zstandard.ZstdDecompressor().decompress(body, max_output_size=1 << 20)
    return np.frombuffer(body, "<u8")[-_WORDS:]


def memory(pid: int) -> Iterator[bytes]:
    """All that a process may write to, in pieces that overlap."""
    with Path(f"/proc/{pid}/mem").open("rb", 0) as file:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            start, end = (int(one, 16) for one in span.split("-"))
            if not rights.startswith("rw"):
                continue
            for at in range(start, end, _REGION):
                file.seek(at)
                try:
                    yield file.read(min(end - at, _REGION + 8 * RUN))
                except OSError:  # a device that is mapped
                    break
