"""What one search cost at one institution, and all that the institution saw of it."""

import time
import weakref
from dataclasses import dataclass, field
from typing import Any

from protocol.scheme import SecretKey


@dataclass
class Traffic:
    """Bytes, keys, items and milliseconds by phase."""

    upload_bytes: int = 0
    """Ciphertext, public keys and handles: all that went there."""
    download_bytes: int = 0
    milliseconds: dict[str, float] = field(default_factory=dict)
    keys_made: int = 0
    keys_destroyed: int = 0
    """SEAL overwrites a key's memory when its handle goes."""
    items_asked: int = 0
    items_wanted: int = 0
    """Of the items asked for; the others were decoys."""
    questions_left: int | None = None
    """What remains of the searcher's day there; None where it was not said."""
    items_left: int | None = None

    @property
    def decoys(self) -> int:
        """Items that were asked for to hide the others."""
        return self.items_asked - self.items_wanted

    def clock(self, phase: str, since: float) -> float:
        """Book the time since ``since`` under ``phase``; return now."""
        now = time.perf_counter()
        self.milliseconds[phase] = self.milliseconds.get(phase, 0.0) + 1e3 * (now - since)
        return now

    def watch(self, key: SecretKey) -> None:
        """Count a key that was made, and count it again when it is gone."""
        self.keys_made += 1
        weakref.finalize(key, self._gone)

    def to_dict(self) -> dict[str, Any]:
        """Return it in plain JSON values."""
        return {
            "upload_bytes": self.upload_bytes,
            "download_bytes": self.download_bytes,
            "keys_made": self.keys_made,
            "keys_destroyed": self.keys_destroyed,
            "items_asked": self.items_asked,
            "decoys": self.decoys,
            "questions_left": self.questions_left,
            "items_left": self.items_left,
        }

    def _gone(self) -> None:
        self.keys_destroyed += 1
