"""Where a running institution keeps what it works with, in the folder that provisioning made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from client.institution.provisioning.home import InstitutionFolder
from client.institution.provisioning.settings import InstitutionSettings
from protocol.errors import UsageError
from protocol.hosts import endpoint, parse_endpoint


@dataclass(frozen=True)
class Place(InstitutionFolder):
    """An institution's folder with its settings read."""

    institution: InstitutionSettings

    @classmethod
    def open(cls, root: Path) -> Self:
        """Read the settings. Raises UsageError for a folder in which nothing is installed.

        Paths are whole: processes elsewhere are told of them.
        """
        root = root.resolve()
        settings = InstitutionFolder(root).settings
        if not settings.exists():
            raise UsageError(
                f"no institution is installed in {root}",
                f"Install its startup kit: blindsight institution install KIT --home {root}",
            )
        return cls(root, InstitutionSettings.load(settings))

    @property
    def coordinator(self) -> tuple[str, int]:
        """Host and port."""
        return parse_endpoint(self.institution.coordinator)

    @property
    def directory(self) -> str:
        """HOST:PORT of the coordinator's directory, relay and releases."""
        return endpoint(self.coordinator[0], self.institution.directory_port)

    @property
    def data(self) -> Path:
        """The folder of pairs."""
        return self.root / self.institution.data

    @property
    def index(self) -> Path | None:
        """The folder of the index, where there is one."""
        found = self.root / self.institution.index
        return found if found.is_dir() else None

    def service(self) -> dict[str, object]:
        """What its service is told: ``ServiceSettings`` by name."""
        settings = self.institution
        return {
            "home": self.root,
            "name": settings.name,
            "data": self.data,
            "index": self.root / settings.index,
            "credentials": self.identity,
            "host": settings.service_host,
            "port": settings.service_port,
        }

    def node_config(self) -> dict[str, str]:
        """What the ClientApp is told of this place."""
        return {
            "name": self.institution.name,
            "data": str(self.data),
            "state": str(self.state / "training"),
            "cache": str(self.state / "features"),
            "identity": str(self.identity),
            "roster": str(self.roster),
            "policy": str(self.policy),
            "audit": str(self.audit.path),
        }
