"""What is asked of every decoder of foreign bytes, whatever feeds it.

It takes the bytes or refuses them by a ``BlindsightError``. It never ends otherwise, never takes
more processor time than ``seconds`` nor more memory than ``memory``.
"""

import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from types import ModuleType

from protocol.errors import BlindsightError

Mutation = Callable[[bytes, Random], bytes]
_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
MIB = 1 << 20


class Broken(Exception):
    """A bound that was not kept."""


@dataclass(frozen=True)
class Target:
    """One decoder: ``decode`` reads foreign bytes as the project does, ``seeds`` are valid ones.

    ``memory`` bytes and ``seconds`` of processor time are what one input may take, beside what
    the decoder holds ready before. ``modules`` are those whose coverage guides the search.
    ``longest`` is the longest input worth trying, in bytes.
    """

    decode: Callable[[bytes], object]
    seeds: Callable[[], Sequence[bytes]]
    mutate: Mutation
    modules: Sequence[ModuleType]
    memory: int = 8 * MIB
    seconds: float = 1.0
    longest: int = 4096
    worst: Callable[[], Sequence[bytes]] | None = None
    """Inputs that are made to take much: long, deep, or claiming more than they hold."""


@cache
def _scratch() -> TemporaryDirectory[str]:
    return TemporaryDirectory(prefix="blindsight-fuzz-")


def scratch(name: str) -> Path:
    """A folder that goes with the process."""
    folder = Path(_scratch().name) / name
    folder.mkdir(exist_ok=True)
    return folder


def check(target: Target, data: bytes) -> bool:
    """Feed ``data``; return whether it was taken. Raises whatever breaks what is asked above."""
    try:
        return _measured(target, data)
    except Broken:
        # What is loaded or made on first use is not of this input: it costs nothing again.
        return _measured(target, data)


def _measured(target: Target, data: bytes) -> bool:
    with _bounded(target):
        try:
            target.decode(data)
        except BlindsightError as error:
            if not error.message:
                raise Broken("an error says what was wrong") from error
            return False
    return True


@contextmanager
def _bounded(target: Target) -> Iterator[None]:
    """Python's and NumPy's allocations are traced; those of libraries show as resident pages."""
    tracemalloc.start()
    try:
        _CLEAR_REFS.write_text("5")
        before, started = _status("VmRSS"), time.process_time()
        yield
        seconds = time.process_time() - started
        memory = max(tracemalloc.get_traced_memory()[1], _status("VmHWM") - before)
    finally:
        tracemalloc.stop()
    if seconds > target.seconds:
        raise Broken(f"at most {target.seconds} s of processor time, got {seconds:.2f}")
    if memory > target.memory:
        raise Broken(f"at most {target.memory:,} bytes of memory, got {memory:,}")


def _status(name: str) -> int:
    line = next(one for one in _STATUS.read_text().splitlines() if one.startswith(name))
    return int(line.split()[1]) * 1024
