"""What happened at a party, in a log that cannot be changed in the middle unnoticed.

One JSON object a line: ``n`` (1, 2, …), ``time`` (UTC), ``event``, its facts, and ``chain``: the
SHA-256 of the chain ``before``, which the line repeats, and of the rest of it. Whoever can write
the file can cut its end off or write it anew: export the last chain to somebody else from time to
time. Nothing of a question's content can be in it: no party but the searcher knows it.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from protocol.errors import StorageError, UsageError
from protocol.files import storage_error, sync_folder, write_at

Fact = str | int | float | bool | None
_START = "0" * 64
_TAIL_BYTES = 65_536
_MAX_LINE_BYTES = 32_768
_OWN = frozenset({"n", "time", "event", "before", "chain"})


@dataclass(frozen=True, slots=True)
class Entry:
    """One thing that happened."""

    n: int
    time: str
    event: str
    facts: dict[str, Fact]
    chain: str


class AuditLog:
    """The log in the file ``path``; several processes may write it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def record(self, event: str, **facts: Fact) -> Entry:
        """Append an entry; it is on disk when this returns. Raises as ``record_all`` does."""
        return self.record_all([(event, facts)])[0]

    def record_all(self, events: Sequence[tuple[str, dict[str, Fact]]]) -> list[Entry]:
        """Append an entry for each, in order; all are on disk when this returns: one fsync.

        A line that a crash left unfinished at the end was acknowledged to nobody, and is cut off.
        Raises StorageError; the log is then as it was.
        """
        try:
            fresh = not self.path.exists()
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            file = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise storage_error(self.path, error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            end, last = self._last(file)
            n, before = (last.n, last.chain) if last else (0, _START)
            time = datetime.now(UTC).isoformat(timespec="milliseconds")
            entries, lines = [], []
            for event, facts in events:
                entry, line = _entry(n + 1, time, event, facts, before)
                n, before = entry.n, entry.chain
                entries.append(entry)
                lines.append(line)
            content = b"".join(lines)
            try:
                write_at(file, content, end)
                os.ftruncate(file, end + len(content))
                os.fsync(file)
            except OSError:
                os.ftruncate(file, end)
                raise
            if fresh:
                sync_folder(self.path.parent)
            return entries
        except OSError as error:
            raise storage_error(self.path, error) from error
        finally:
            os.close(file)

    def read(self) -> Iterator[Entry]:
        """Every entry in order, each checked. Raises StorageError at the first that is wrong.

        UsageError if there is no log.
        """
        try:
            file = self.path.open("rb")
        except OSError as error:
            raise UsageError(
                f"{self.path} cannot be read: {error.strerror}", "Name a party's audit.log."
            ) from error
        with file:
            before, number = _START, 0
            while line := file.readline(_MAX_LINE_BYTES + 1):
                number += 1
                if not line.endswith(b"\n") and not file.peek(1):
                    return  # unfinished: acknowledged to nobody
                entry = _parse(line, before)
                if entry is None or entry.n != number:
                    raise StorageError(
                        f"{self.path}, line {number}: it is not what was written there",
                        "The log was changed or damaged; lines before this one hold.",
                    )
                before = entry.chain
                yield entry

    def _last(self, file: int) -> tuple[int, Entry | None]:
        """Where the last whole line ends, and its entry."""
        size = os.fstat(file).st_size
        tail = os.pread(file, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        end = tail.rfind(b"\n") + 1
        if not end:
            if size:
                self._refuse()
            return 0, None
        begin = tail.rfind(b"\n", 0, end - 1) + 1
        entry = _parse(tail[begin:end], None)
        if entry is None:
            self._refuse()
        return max(0, size - len(tail)) + end, entry

    def _refuse(self) -> None:
        raise StorageError(
            f"{self.path}: its last line is no entry of an audit log",
            f"See blindsight audit verify --log {self.path}; nothing was added to it.",
        )


def _entry(
    n: int, time: str, event: str, facts: dict[str, Fact], before: str
) -> tuple[Entry, bytes]:
    if _OWN & set(facts):
        raise ValueError(f"a fact may not be called one of {sorted(_OWN)}")
    content = {"n": n, "time": time, "event": event, **facts}
    chain = _chain(before, content)
    line = json.dumps(content | {"before": before, "chain": chain}, ensure_ascii=True) + "\n"
    if len(line) > _MAX_LINE_BYTES:
        raise ValueError(f"an entry holds at most {_MAX_LINE_BYTES} bytes")
    return Entry(n, time, event, dict(facts), chain), line.encode()


def _chain(before: str, content: dict[str, Fact]) -> str:
    written = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(f"{before}\n{written}".encode()).hexdigest()


def _parse(line: bytes, before: str | None) -> Entry | None:
    """The entry of a line that follows the chain ``before``; without one, that it names itself."""
    try:
        found = json.loads(line)
        chain, named = found.pop("chain"), found.pop("before")
        if (before is not None and named != before) or _chain(named, found) != chain:
            return None
        n, time, event = found.pop("n"), found.pop("time"), found.pop("event")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return Entry(n, time, event, found, chain)
