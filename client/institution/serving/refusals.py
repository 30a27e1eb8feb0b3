"""Refusals in the audit log: the first at once, those that follow as one count a minute.

Who was revoked keeps a valid certificate and may call on and on: the log tells of it, and does not
grow by it. There are as many keys here as there are certificates of the authority.
"""

import threading
import time
from collections.abc import Callable
from typing import Protocol

EVERY_SECONDS = 60.0


class Note(Protocol):
    """What writes a line."""

    def __call__(self, event: str, **facts: str | int) -> None:
        """Write ``event`` with its facts."""


class Refusals:
    """Notes refusals of one kind (who, what, why) at most once in ``EVERY_SECONDS``, and counts."""

    def __init__(self, note: Note, clock: Callable[[], float] = time.monotonic) -> None:
        self._note, self._clock = note, clock
        self._lock = threading.Lock()
        # Those that began first come first, so they also end first.
        self._counting: dict[tuple[tuple[str, str], ...], tuple[float, int]] = {}

    def seen(self, **kind: str) -> None:
        """Note a refusal, or count it with those of its ``kind`` that were noted before."""
        key = tuple(sorted(kind.items()))
        with self._lock:
            self._write_until(self._clock())
            if key in self._counting:
                ends, count = self._counting[key]
                self._counting[key] = ends, count + 1
            else:
                self._counting[key] = self._clock() + EVERY_SECONDS, 0
                self._note("refused", **kind)

    def write_due(self) -> None:
        """Write the counts whose time is over."""
        if self._counting:
            with self._lock:
                self._write_until(self._clock())

    def close(self) -> None:
        """Write every count."""
        with self._lock:
            self._write_until(float("inf"))

    def _write_until(self, now: float) -> None:
        while self._counting:
            key, (ends, count) = next(iter(self._counting.items()))
            if ends > now:
                return
            del self._counting[key]
            if count:
                self._note("refused-again", **dict(key), count=count)
