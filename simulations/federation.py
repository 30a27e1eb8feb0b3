"""A whole federation in one folder of one machine, its services in processes of their own.

ROOT/releases/<id>/                 the model that the federation trained
ROOT/institutions/<name>/data/      its private images and captions
ROOT/institutions/<name>/index/     its index
ROOT/institutions/<name>/tls/       its certificate and key
ROOT/searcher/tls/                  the searcher's
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from client.searcher.remote import RemoteInstitution
from protocol.credentials import Credentials
from protocol.errors import DataError, UsageError
from protocol.model.release import Release, read_release
from simulations.authority import ThrowAwayAuthority
from simulations.process import ServiceProcess

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

    def serve(self, stack: ExitStack, names: Sequence[str] = ()) -> list[RemoteInstitution]:
        """Start the services of these institutions, or all; return connections for a searcher.

        The services end with ``stack``, and with this process even if it is killed. Raises
        :class:`ServiceError` if one does not come up.
        """
        missing = sorted(set(names) - set(self.names))
        if missing:
            raise UsageError(
                f"there is no institution {', '.join(missing)}",
                f"There are: {', '.join(self.names)}.",
            )
        authority = ThrowAwayAuthority()
        searcher = Credentials.in_folder(authority.issue("searcher", self.root / "searcher/tls"))
        processes = []
        for name in names or self.names:
            folder = self.institution(name)
            process = ServiceProcess(
                name,
                folder / "service.log",
                data=folder / "data",
                index=folder / "index",
                credentials=authority.issue(name, folder / "tls"),
                release="thumbnail",
            )
            processes.append(stack.enter_context(process))

        @stack.callback
        def end_together() -> None:
            for process in processes:
                process.end()

        return [
            RemoteInstitution(one.name, one.address(START_SECONDS), searcher, ANSWER_SECONDS)
            for one in processes
        ]
