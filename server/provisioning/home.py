"""The coordinator's folder: its own identity, the authority's, and what it keeps of members."""

from dataclasses import dataclass
from pathlib import Path

from protocol.provisioning.home import Home


@dataclass(frozen=True)
class CoordinatorHome(Home):
    """The folder of a coordinator."""

    @property
    def authority_key(self) -> Path:
        """The secret that all trust rests on; move it to another machine where that is possible."""
        return self.root / "authority/private-key.pem"

    @property
    def authority_certificate(self) -> Path:
        """What everybody may have of the authority."""
        return self.root / "authority/certificate.pem"

    @property
    def settings(self) -> Path:
        """The settings; a federation is there when they are."""
        return self.root / "federation.toml"

    @property
    def proxy(self) -> Path:
        """The configuration of nginx."""
        return self.root / "nginx.conf"

    @property
    def unit(self) -> Path:
        """The systemd unit."""
        return self.root / "units/blindsight-coordinator.service"

    def member(self, name: str) -> Path:
        """The folder of one member: request.pem, certificate.pem, kit.tar."""
        return self.root / "members" / name
