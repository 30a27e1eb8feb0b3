"""An institution's folder: what the federation gave it, and what it decides itself."""

from dataclasses import dataclass
from pathlib import Path

from protocol.provisioning.home import Home


@dataclass(frozen=True)
class InstitutionFolder(Home):
    """The folder of an institution."""

    @property
    def settings(self) -> Path:
        """Where its things are."""
        return self.root / "institution.toml"

    @property
    def policy(self) -> Path:
        """What it allows, whatever the coordinator asks for."""
        return self.root / "policy.toml"

    @property
    def releases(self) -> Path:
        """The models that came from the coordinator, each in a folder of its id."""
        return self.root / "releases"

    @property
    def unit(self) -> Path:
        """The systemd unit."""
        return self.root / "units/blindsight-institution.service"
