"""One child process of a supervisor: started, watched, and ended with all that it started."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from protocol import leash
from protocol.files import writing

#: A log grows to twice this: a former part is kept beside it.
LOG_BYTES = 8 << 20
END_SECONDS = 10.0
_TAIL_BYTES = 4096


def _nothing(_: str) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Program:
    """What to run: ``command`` is a program's full path and its arguments.

    ``ready`` says whether it does its work yet; with it, others wait for it. ``explain`` may turn
    the end of its log into a sentence on why it ended; None leaves it to the exit code.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    ready: Callable[[], bool] | None = None
    explain: Callable[[str], str | None] = _nothing


class Child:
    """A program in a session of its own, which is ended when this process is gone, even killed."""

    def __init__(self, program: Program) -> None:
        """Start it; what it prints is appended to its log. Raises StorageError."""
        self.program = program
        self.started = time.monotonic()
        with writing(program.log):
            program.log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            turn_log(program.log, 0)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            log = os.open(program.log, flags, 0o600)
        self._begin = os.fstat(log).st_size
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", leash.__file__, str(os.getpid()), *program.command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(program.environment),
                # Ctrl-C is for the supervisor, who ends its children in order.
                start_new_session=True,
            )
        finally:
            os.close(log)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def ended(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def turn_log(self) -> None:
        """Put a log that became too long aside."""
        turn_log(self.program.log, LOG_BYTES)

    def tail(self) -> str:
        """The end of what this process has printed, and none before it."""
        return tail(self.program.log, self._begin)

    def stop(self, seconds: float = END_SECONDS) -> None:
        """Ask it to end, wait for it, and take away what is left of its session."""
        if self._process.poll() is None:
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self.sweep()
        self._process.wait()

    def sweep(self) -> None:
        """Kill what is left of its session: nginx killed leaves workers, who hold the port."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            return


def turn_log(log: Path, limit: int) -> None:
    """Copy a log of more than ``limit`` bytes to ``NAME.1`` and empty it.

    The writer appends, so it goes on at the new end without being told. A limit of 0 stands for
    the usual one.
    """
    try:
        if log.stat().st_size > (limit or LOG_BYTES):
            shutil.copyfile(log, log.with_name(f"{log.name}.1"))
            os.truncate(log, 0)
    except FileNotFoundError:
        return


def tail(log: Path, begin: int = 0, limit: int = _TAIL_BYTES) -> str:
    """At most the last ``limit`` bytes of a log, not before ``begin``, in whole lines."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            if begin > size:  # it was turned since
                begin = 0
            file.seek(max(begin, size - limit))
            text = file.read(limit).decode(errors="replace")
    except FileNotFoundError:
        return ""
    return text if size - begin <= limit else text.partition("\n")[2]
