"""Where a running coordinator keeps what it works with, in the folder that provisioning made."""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

from protocol.errors import UsageError
from server.provisioning.home import CoordinatorHome
from server.provisioning.settings import FederationSettings


@dataclass(frozen=True)
class Place(CoordinatorHome):
    """A coordinator's folder with its settings read."""

    federation: FederationSettings

    @classmethod
    def open(cls, root: Path) -> Self:
        """Read the settings. Raises UsageError for a folder that ``federation init`` did not make.

        Paths are whole: processes elsewhere are told of them.
        """
        root = root.resolve()
        settings = CoordinatorHome(root).settings
        if not settings.exists():
            raise UsageError(
                f"there is no federation in {root}",
                f"Make one: blindsight federation init --home {root}",
            )
        return cls(root, FederationSettings.load(settings))

    @property
    def runs(self) -> Path:
        """A folder for each training run."""
        return self.state / "runs"

    @property
    def releases(self) -> Path:
        """Published models."""
        return self.root / "releases"

    @property
    def superlink(self) -> str:
        """The superlink's address, on loopback."""
        return f"127.0.0.1:{self.federation.superlink_port}"
