"""What takes a thread back from a call that does not end: one watcher for all of them.

A timer for each call would be a thread for each call: 0.1 ms of every question.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Deadlines:
    """Cancels calls that last longer than ``seconds``; ``close`` ends the watcher."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._under_way: dict[object, tuple[float, Callable[[], object]]] = {}
        self._thread = threading.Thread(target=self._watch, name="deadlines", daemon=True)
        self._thread.start()

    @contextmanager
    def limit(self, cancel: Callable[[], object]) -> Iterator[None]:
        """Call ``cancel`` if the block lasts too long; it must not wait for anything."""
        call = object()
        with self._lock:
            self._under_way[call] = time.monotonic() + self._seconds, cancel
        try:
            yield
        finally:
            with self._lock:
                self._under_way.pop(call, None)

    def close(self) -> None:
        """Watch no longer."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        # All have the same time, so the first to begin is the first to end, and what begins while
        # the watcher sleeps ends later than it wakes: nobody has to wake it.
        sleep = self._seconds
        while not self._closed.wait(sleep):
            now, late = time.monotonic(), []
            with self._lock:
                for call, (end, cancel) in list(self._under_way.items()):
                    if end > now:
                        break
                    late.append(cancel)
                    del self._under_way[call]
                first = next(iter(self._under_way.values()), None)
                sleep = first[0] - now if first else self._seconds
            for cancel in late:
                cancel()
