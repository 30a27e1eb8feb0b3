"""The epoch that is served: an index, its scorer, and what searchers are told of them.

A newer epoch takes the place of the old one between two calls. A question that is being answered
is answered to its end from the epoch that it was asked of.
"""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.institution.index import Index
from client.institution.scorer import Scorer
from client.institution.selfcheck import self_check
from client.institution.serving.release import Releasing
from client.institution.settings import ServiceSettings
from protocol.errors import BlindsightError, EpochMismatch
from protocol.packing import Layout
from protocol.wire import IndexDescription

log = logging.getLogger(__name__)


class Epoch:
    """One epoch, opened and checked."""

    def __init__(self, settings: ServiceSettings) -> None:
        """Open the current one; raise :class:`StorageError` if it is not whole."""
        self.index = Index(settings.index)
        self_check(self.index)
        manifest = self.index.manifest
        self.described = IndexDescription(
            settings.name, manifest.release_id, manifest.epoch, self.index.layout
        )
        self.scorer = Scorer(self.index.packed, settings.threads, settings.together)
        self.releasing = Releasing(settings.data)
        self.users, self.left = 0, False

    def close(self) -> None:
        """Stop scoring, and let go of what is mapped."""
        self.scorer.close()
        self.index.close()


class Served:
    """The current epoch; another one is opened when the index's file ``current`` changes."""

    def __init__(self, settings: ServiceSettings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._stamp = _stamp(settings.index)
        self._epoch = Epoch(settings)
        self.longest = question_bytes(self._epoch.described.layout)
        """Bytes of a question that this service takes; it cannot be changed while it runs."""

    @contextmanager
    def current(self) -> Iterator[Epoch]:
        """The epoch to work with, which stays open while the block runs."""
        with self._lock:
            stamp = _stamp(self._settings.index)
            if stamp != self._stamp:
                self._stamp = stamp
                self._switch()
            epoch = self._epoch
            epoch.users += 1
        try:
            yield epoch
        finally:
            with self._lock:
                epoch.users -= 1
                idle = epoch.left and not epoch.users
            if idle:
                epoch.close()

    @property
    def described(self) -> IndexDescription:
        """What is served, as far as anybody has asked for it."""
        return self._epoch.described

    def close(self) -> None:
        """Stop scoring."""
        self._epoch.close()

    def _switch(self) -> None:
        try:
            following = Epoch(self._settings)
            if question_bytes(following.described.layout) > self.longest:
                following.close()
                raise EpochMismatch("the new epoch takes longer questions: start the service anew")
        except BlindsightError as error:
            log.error("the epoch of before is still served: %s", error.message)
            return
        before, self._epoch = self._epoch, following
        before.left = True
        log.info("epoch %d is served", following.described.epoch)
        if not before.users:
            before.close()


def question_bytes(layout: Layout) -> int:
    """The longest right question to an index, with the framing of its fields."""
    return layout.upload_bytes + 64 * (layout.chunks + layout.public_keys)


def _stamp(root: Path) -> tuple[int, int]:
    try:
        found = (root / "current").stat()
    except OSError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns
