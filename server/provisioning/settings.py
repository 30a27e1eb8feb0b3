"""What federation.toml says."""

from pydantic import Field

from protocol.hosts import endpoint
from protocol.provisioning.toml_settings import Host, Name, Port, TomlSettings


class FederationSettings(TomlSettings):
    """The public address is nginx's; the superlink's is loopback alone."""

    name: Name = Field(description="The federation's name.")
    host: Host = Field(
        description="The host that institutions dial; it stands in the coordinator's certificate."
    )
    port: Port = Field(default=8443, description="The port that institutions dial: nginx's.")
    listen: Host = Field(
        default="0.0.0.0",  # noqa: S104 - nginx, the one process that is meant to be reached
        description="The address that nginx listens on.",
    )
    directory_port: Port = Field(
        default=8444, description="The port of the directory and the relay, beside nginx's."
    )
    superlink_port: Port = Field(
        default=18000, description="The superlink's port, on loopback: never open it to others."
    )

    @property
    def coordinator(self) -> str:
        """HOST:PORT that institutions dial."""
        return endpoint(self.host, self.port)
