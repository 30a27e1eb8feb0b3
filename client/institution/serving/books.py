"""Ledger and audit log together: what arrives at once is put on disk at once.

A sync to disk takes milliseconds, and every question needs two. One thread takes all charges and
notes that wait, so that under load many share a commit of the ledger and a sync of the log.
"""

import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Lock, Thread

from client.institution.serving.ledger import Charge, Ledger
from protocol.audit import AuditLog, Fact
from protocol.errors import BlindsightError, StorageError

DAY_SECONDS = 86_400
_MAX_TOGETHER = 256


@dataclass(frozen=True, slots=True)
class _Entry:
    event: str
    facts: dict[str, Fact]
    charge: Charge | None = None
    done: "Future[bool]" = field(default_factory=Future)


class Books:
    """Charges and notes of one service. Nothing of a question's content can be in them."""

    def __init__(self, ledger: Ledger, audit: AuditLog) -> None:
        self._ledger, self._audit = ledger, audit
        self._entries: SimpleQueue[_Entry | None] = SimpleQueue()
        self._lock, self._closed = Lock(), False
        self._thread = Thread(target=self._keep, name="books")
        self._thread.start()

    def charge(self, charge: Charge, event: str, **facts: Fact) -> bool:
        """Charge and note; return whether the budget had room, once that is on disk.

        Raises StorageError if either cannot be written: then nothing may be answered.
        """
        entry = _Entry(event, facts, charge)
        if not self._put(entry):
            raise StorageError("the service is stopping")
        return entry.done.result()

    def note(self, event: str, **facts: Fact) -> None:
        """Note something; it is on disk soon, and before ``close`` returns. Later it is lost."""
        self._put(_Entry(event, facts))

    def close(self) -> None:
        """Write what waits, and stop."""
        with self._lock:
            self._closed = True
            self._entries.put(None)
        self._thread.join()
        self._ledger.close()

    def _put(self, entry: _Entry) -> bool:
        with self._lock:
            if not self._closed:
                self._entries.put(entry)
            return not self._closed

    def _keep(self) -> None:
        while (first := self._entries.get()) is not None:
            together, last = [first], False
            with suppress(Empty):
                while len(together) < _MAX_TOGETHER:
                    entry = self._entries.get_nowait()
                    if entry is None:
                        last = True
                        break
                    together.append(entry)
            self._write(together)
            if last:
                return

    def _write(self, together: list[_Entry]) -> None:
        try:
            charges = [one.charge for one in together if one.charge is not None]
            today = int(time.time() // DAY_SECONDS)
            charged = iter(self._ledger.charge(charges, today)) if charges else iter(())
            decided = [one.charge is None or next(charged) for one in together]
            self._audit.record_all(
                [
                    (one.event, one.facts | ({"allowed": allowed} if one.charge else {}))
                    for one, allowed in zip(together, decided, strict=True)
                ]
            )
        except BaseException as error:  # whatever it was, those who wait are told
            known = error if isinstance(error, BlindsightError) else StorageError(str(error))
            for one in together:
                one.done.set_exception(known)
            return
        for one, allowed in zip(together, decided, strict=True):
            one.done.set_result(allowed)
