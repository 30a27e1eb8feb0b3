"""The real service in a process of its own, on loopback over mutual TLS, and its memory."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.searcher.remote import RemoteInstitution
from protocol.credentials import Credentials
from protocol.errors import ServiceError
from simulations.authority import ThrowAwayAuthority
from simulations.bench.engine import NAME
from simulations.process import ServiceProcess

_START_SECONDS = 300.0
_ANSWER_SECONDS = 600.0
_SAMPLE_SECONDS = 0.002


class BenchService(ServiceProcess):
    """A service over ``root/index`` that releases nothing."""

    def __init__(self, root: Path, threads: int) -> None:
        authority = ThrowAwayAuthority()
        self._searcher = Credentials.in_folder(authority.issue("searcher", root / "searcher"))
        super().__init__(
            NAME,
            root / "service.log",
            data=root,
            index=root / "index",
            credentials=authority.issue(NAME, root / "tls"),
            threads=threads,
        )

    def connect(self) -> RemoteInstitution:
        """Wait until questions are answered; raise :class:`ServiceError` if that fails."""
        try:
            address = self.address(_START_SECONDS)
        except ServiceError as error:
            # Without the hint: its log is gone with the folder.
            raise ServiceError(error.message) from error
        return RemoteInstitution(NAME, address, self._searcher, _ANSWER_SECONDS)

    def memory(self) -> int:
        """Return the bytes that the process holds of its own: anonymous, not the mapped index."""
        return memory_of(self.pid)

    @contextmanager
    def watching(self) -> Iterator[list[int]]:
        """Sample the memory every 2 ms while the block runs, into the list that is yielded."""
        samples, done = [self.memory()], threading.Event()

        def watch() -> None:
            while not done.wait(_SAMPLE_SECONDS):
                samples.append(self.memory())

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield samples
        finally:
            done.set()
            watcher.join()


def memory_of(pid: int) -> int:
    """Return the bytes that a process holds of its own: anonymous, not what it has mapped."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return sum(1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem"))
