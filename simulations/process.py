"""An institution's service in a process of its own, as anybody would start it."""

import json
import select
import subprocess
import sys
from pathlib import Path
from typing import Self

from protocol.errors import ServiceError

_END_SECONDS = 10.0


class ServiceProcess:
    """``blindsight institution serve``, which ends with the block, and with this process."""

    def __init__(self, name: str, log: Path, **flags: Path | str | int) -> None:
        """Start it as ``name`` with ``--FLAG VALUE`` for each of ``flags``; it talks to ``log``."""
        self.name, self._log = name, log
        arguments = ["institution", "serve", "--until-stdin-closes", "--name", name]
        for flag, value in flags.items():
            arguments += [f"--{flag}", str(value)]
        with log.open("wb") as talk:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "simulations.cli", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=talk,
                start_new_session=True,  # Ctrl-C goes to the one who started it, who closes stdin
            )

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def address(self, seconds: float) -> str:
        """Wait until questions are answered; return host:port.

        Raises :class:`ServiceError` if the service ends before, or says nothing for ``seconds``.
        """
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        line = self._process.stdout.readline() if ready else b""
        if not line:
            reason = self._log.read_text(errors="replace").strip()[-500:]
            raise ServiceError(
                f"the service of {self.name} did not start: {reason or 'no word from it'}",
                f"See {self._log}.",
            )
        return str(json.loads(line)["address"])

    def end(self) -> None:
        """Ask it to end, and do not wait."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        try:
            self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._process.__exit__(None, None, None)  # closes its pipe and waits
