"""How much one searcher may have under way at once; more is refused at once, with when to retry."""

import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from protocol.errors import LimitReached

_LEAST_MS = 100
_WEIGHT = 0.2
"""Of the latest call in the running mean of their seconds."""


class Turnstile:
    """Counts calls under way: at most ``each`` of one searcher, at most ``most`` in all."""

    def __init__(self, each: int, most: int) -> None:
        self._each, self._most = each, most
        self._lock = threading.Lock()
        self._inside: Counter[str] = Counter()
        self._seconds = 0.1

    @property
    def inside(self) -> int:
        """Calls under way."""
        with self._lock:
            return self._inside.total()

    @contextmanager
    def enter(self, searcher: str) -> Iterator[None]:
        """Count a call while the block runs; raise LimitReached where there is no room for it."""
        with self._lock:
            own, total = self._inside[searcher], self._inside.total()
            if own >= self._each or total >= self._most:
                what = f"{own} calls of this searcher are" if own >= self._each else "too much is"
                error = LimitReached(
                    f"{what} under way; at most {self._each} each are", "Ask again later."
                )
                waiting = own if own >= self._each else total
                error.retry_after_ms = max(_LEAST_MS, round(1000 * self._seconds * waiting))
                raise error
            self._inside[searcher] += 1
        since = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._inside[searcher] -= 1
                if not self._inside[searcher]:
                    del self._inside[searcher]
                self._seconds += _WEIGHT * (time.monotonic() - since - self._seconds)
