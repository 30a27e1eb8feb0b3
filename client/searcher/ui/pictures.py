"""Pictures that came with results, kept for the browser under names that nobody guesses.

They are foreign bytes. They are not decoded here, beside secret keys: a browser does that in its
sandbox, and is told one of four types of which none can hold a script.
"""

import hashlib
import threading
from collections import OrderedDict

_MOST_BYTES = 256 << 20
_FORMS = (
    (b"\xff\xd8\xff", b"", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", b"", "image/png"),
    (b"GIF8", b"", "image/gif"),
    (b"RIFF", b"WEBP", "image/webp"),
)
"""How a form begins, what stands at byte 8, and its type."""


def media_type(data: bytes) -> str | None:
    """The type of a picture that a browser may show; None for other bytes."""
    for start, later, name in _FORMS:
        if data.startswith(start) and data[8:].startswith(later):
            return name
    return None


class Pictures:
    """Bytes by name, at most 256 MB: the longest unused go first."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def keep(self, data: bytes) -> str | None:
        """Return the name under which it can be had; None for what is no picture."""
        if media_type(data) is None:
            return None
        name = hashlib.sha256(data).hexdigest()
        with self._lock:
            if name not in self._kept:
                self._bytes += len(data)
            self._kept[name] = data
            self._kept.move_to_end(name)
            while self._bytes > _MOST_BYTES:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return name

    def __getitem__(self, name: str) -> bytes:
        """The bytes. Raises KeyError."""
        with self._lock:
            return self._kept[name]
