"""What institution.toml says: where this institution's things are. What it allows: policy.toml."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from protocol.provisioning.toml_settings import Endpoint, Host, Name, Port, TomlSettings


class InstitutionSettings(TomlSettings):
    """Relative folders are relative to the institution's own."""

    name: Name = Field(description="This institution's name in the federation.")
    coordinator: Endpoint = Field(description="HOST:PORT of the coordinator.")
    data: Path = Field(default=Path("data"), description="The folder with images and captions.")
    index: Path = Field(
        default=Path("index"), description="The folder of the index; searched where it is there."
    )
    service_host: Host = Field(
        default="127.0.0.1", description="The address on which searchers are answered."
    )
    service_port: Port = Field(
        default=9443, description="The port on which searchers are answered."
    )
    reach: Literal["none", "direct", "relay"] = Field(
        default="none",
        description='How searchers reach the service: "direct" at public_address, "relay" through '
        'the coordinator; with "none" the directory does not list it.',
    )
    public_address: Endpoint | Literal[""] = Field(
        default="", description='HOST:PORT that searchers dial, where reach is "direct".'
    )
    directory_port: Port = Field(
        default=8444, description="The coordinator's port of directory and relay."
    )
    round_items_to: int = Field(
        default=100, ge=1, description="The directory gets the number of items rounded down to so."
    )
    node_port: Port = Field(
        default=18100, description="A port on loopback for the training node's own processes."
    )
