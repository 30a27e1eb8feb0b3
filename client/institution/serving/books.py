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
    done: "Future[int | None]" = field(default_factory=Future)


class Books:
    """Charges and notes of one service. Nothing of a question's content can be in them."""

    def __init__(self, ledger: Ledger, audit: AuditLog) -> None:
        self._ledger, self._audit = ledger, audit
        self._entries: SimpleQueue[_Entry | None] = SimpleQueue()
        self._lock, self._closed = Lock(), False
        self._thread = Thread(target=self._keep, name="books")
        self._thread.start()

    def charge(self, charge: Charge, event: str, **facts: Fact) -> int | None:
        """Charge and note; return what is left of the budget once that is on disk.

        None where it had no room for the charge.

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
            left = [next(charged) if one.charge else None for one in together]
            # A charge without room is a refusal: whoever refuses notes it, once for many.
            noted = [
                (one.event, one.facts | ({"allowed": True} if one.charge else {}))
                for one, some in zip(together, left, strict=True)
                if one.charge is None or some is not None
            ]
            if noted:
                self._audit.record_all(noted)
        except BaseException as error:  # whatever it was, those who wait are told
            known = error if isinstance(error, BlindsightError) else StorageError(str(error))
            for one in together:
                one.done.set_exception(known)
            return
        for one, some in zip(together, left, strict=True):
            one.done.set_result(some)
