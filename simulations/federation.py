"""A whole federation in one folder of one machine, its services in processes of their own.

ROOT/releases/<id>/                 the model that the federation trained
ROOT/institutions/<name>/data/      its private images and captions
ROOT/institutions/<name>/index/     its index
ROOT/institutions/<name>/tls/       its certificate and key
ROOT/searcher/tls/                  the searcher's
"""

import json
import select
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from client.searcher.remote import RemoteInstitution
from protocol.credentials import Credentials
from protocol.errors import DataError, ServiceError, UsageError
from protocol.model.release import Release, read_release
from simulations.authority import ThrowAwayAuthority

START_SECONDS = 120.0
ANSWER_SECONDS = 60.0


class LocalFederation:
    """Knows where everything of a local federation lies, and starts its services."""

    def __init__(self, root: Path) -> None:
        self.root = root

    @property
    def names(self) -> list[str]:
        """The institutions, in order of name."""
        folder = self.root / "institutions"
        names = sorted(one.name for one in folder.iterdir()) if folder.is_dir() else []
        if not names:
            raise UsageError(
                f"there is no federation in {self.root}",
                f"Make one first: blindsight simulate --out {self.root}",
            )
        return names

    def institution(self, name: str) -> Path:
        """The folder of one institution."""
        return self.root / "institutions" / name

    @property
    def releases(self) -> Path:
        """Where releases are published."""
        return self.root / "releases"

    def read_release(self) -> Release:
        """Read and verify the one release of this federation."""
        found = sorted(one for one in self.releases.glob("[0-9a-f]*") if one.is_dir())
        if not found:
            raise DataError(
                f"there is no model release in {self.releases}",
                f"Train one first: blindsight simulate --out {self.root}",
            )
        return read_release(found[-1])

    def serve(self, stack: ExitStack) -> list[RemoteInstitution]:
        """Start every institution's service; return connections that a searcher can use.

        The services end with ``stack``, and with this process even if it is killed. Raises
        :class:`ServiceError` if one does not come up.
        """
        authority = ThrowAwayAuthority()
        searcher = Credentials.in_folder(authority.issue("searcher", self.root / "searcher/tls"))
        processes = {}
        for name in self.names:
            folder = self.institution(name)
            authority.issue(name, folder / "tls")
            processes[name] = stack.enter_context(_Process(name, folder))
        return [
            RemoteInstitution(name, process.address(), searcher, ANSWER_SECONDS)
            for name, process in processes.items()
        ]


class _Process:
    """One institution's service in a process of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        self._name = name
        self._log = folder / "service.log"
        arguments = ["institution", "serve", "--until-stdin-closes", "--name", name]
        for option in ("data", "index"):
            arguments += [f"--{option}", str(folder / option)]
        arguments += ["--credentials", str(folder / "tls"), "--release", "thumbnail"]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "simulations.cli", *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C goes to the one who started it, who closes stdin
            )

    def __enter__(self) -> "_Process":
        return self

    def address(self) -> str:
        """Wait until the service answers questions; return host:port."""
        stdout = self._process.stdout
        assert stdout is not None
        ready, _, _ = select.select([stdout], [], [], START_SECONDS)
        line = stdout.readline() if ready else b""
        if not line:
            reason = self._log.read_text(errors="replace").strip()[-500:]
            raise ServiceError(
                f"the service of {self._name} did not start: {reason or 'no word from it'}",
                f"See {self._log}.",
            )
        return str(json.loads(line)["address"])

    def __exit__(self, *_: object) -> None:
        if not self._ended():
            self._process.kill()
        self._process.__exit__(None, None, None)  # closes its pipe and waits

    def _ended(self) -> bool:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            return False
        return True
