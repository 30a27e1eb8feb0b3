"""Keys made while the searcher reads, so that the next question need not wait for them.

Most of what a question costs depends on no question: the key pair, and encryptions of zero under
it. They are made ahead, a key for each institution's next question. Such a key is as fresh as one
that is made on the spot: nobody has seen anything of it, it serves one question, and one that
waited for too long is dropped.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Sequence

from protocol.packing import Layout
from protocol.params import Preset
from protocol.scheme import Scheme, SecretKey

_MOST_SECONDS = 300.0


class PreparedKeys(Scheme):
    """A scheme that hands out the keys of another, made ahead where there are any."""

    def __init__(self, scheme: Scheme) -> None:
        self._scheme = scheme
        self._lock = threading.Lock()
        self._stock: dict[Preset, list[tuple[float, SecretKey]]] = defaultdict(list)
        self._thread = threading.Thread()
        self._closed = False

    def keygen(self, preset: Preset) -> SecretKey:
        """A key that is ready, or else a new one."""
        oldest = time.monotonic() - _MOST_SECONDS
        with self._lock:
            while self._stock[preset]:
                made, key = self._stock[preset].pop()
                if made >= oldest:
                    return key
        return self._scheme.keygen(preset)

    def prepare(self, layouts: Sequence[Layout]) -> threading.Thread:
        """Make a key for a question to each of ``layouts``, in the thread that is returned."""
        with self._lock:
            if not self._thread.is_alive():
                self._thread = threading.Thread(target=self._make, args=(layouts,), daemon=True)
                self._thread.start()
            return self._thread

    def close(self) -> None:
        """Drop all keys."""
        with self._lock:
            self._closed = True
        if self._thread.is_alive():
            self._thread.join()
        self._stock.clear()

    def _make(self, layouts: Sequence[Layout]) -> None:
        with self._lock:
            self._stock.clear()
        for layout in layouts:
            if self._closed:
                return
            key = self._scheme.keygen(layout.preset)
            key.prepare(layout.public_keys + layout.chunks)
            with self._lock:
                self._stock[layout.preset].append((time.monotonic(), key))
