"""The policy as its file says now: a change counts from the next call on, a typo never."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path

from client.institution.policy import Policy
from client.institution.search_policy import SearchPolicy
from protocol.errors import BlindsightError

log = logging.getLogger(__name__)


class WatchedPolicy:
    """Reads ``policy.toml`` anew when it changes; keeps the last good one while it is wrong."""

    def __init__(self, path: Path, told: Callable[[str], None] = lambda problem: None) -> None:
        """Read it. Raises UsageError: a service does not start with a policy that it cannot read.

        ``told`` is called for each change, with what is wrong with it or with "".
        """
        self._path, self._told = path, told
        self._lock = threading.Lock()
        self._stamp = self._stamped()
        self._policy = Policy.read(path).search

    def current(self) -> SearchPolicy:
        """What holds now."""
        with self._lock:
            stamp = self._stamped()
            if stamp != self._stamp:
                self._stamp = stamp
                self._read()
            return self._policy

    def _read(self) -> None:
        try:
            self._policy = Policy.read(self._path).search
        except BlindsightError as error:
            log.error("the policy of before still holds: %s", error.message)
            self._told(error.message)
        else:
            log.info("a new policy holds")
            self._told("")

    def _stamped(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return 0, 0, 0
        return found.st_ino, found.st_mtime_ns, found.st_size
