"""The real service in a process of its own, on loopback over mutual TLS, and its memory."""

import json
import select
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.searcher.remote import RemoteInstitution
from protocol.credentials import Credentials
from protocol.errors import ServiceError
from simulations.authority import ThrowAwayAuthority
from simulations.bench.engine import NAME

_START_SECONDS = 300.0
_ANSWER_SECONDS = 600.0
_END_SECONDS = 10.0
_SAMPLE_SECONDS = 0.002


class BenchService:
    """``blindsight institution serve`` over ``root/index``; it releases nothing."""

    def __init__(self, root: Path, threads: int) -> None:
        authority = ThrowAwayAuthority()
        self._searcher = Credentials.in_folder(authority.issue("searcher", root / "searcher"))
        self._log = root / "service.log"
        arguments = ["institution", "serve", "--until-stdin-closes", "--name", NAME]
        arguments += ["--data", str(root), "--index", str(root / "index")]
        arguments += ["--credentials", str(authority.issue(NAME, root / "tls"))]
        arguments += ["--threads", str(threads)]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "simulations.cli", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C goes to the benchmark, which closes stdin
            )

    def __enter__(self) -> "BenchService":
        return self

    def connect(self) -> RemoteInstitution:
        """Wait until questions are answered; raise :class:`ServiceError` if that fails."""
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], _START_SECONDS)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            reason = self._log.read_text(errors="replace").strip()[-500:]
            raise ServiceError(f"the service did not start: {reason or 'no word from it'}")
        address = str(json.loads(line)["address"])
        return RemoteInstitution(NAME, address, self._searcher, _ANSWER_SECONDS)

    def memory(self) -> int:
        """Return the bytes that the process holds of its own: anonymous, not the mapped index."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
        return sum(1024 * int(fields[name].split()[0]) for name in ("RssAnon", "RssShmem"))

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

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.__exit__(None, None, None)  # closes its pipe and waits
