"""What searcher.toml says: where the directory is."""

from pathlib import Path

from pydantic import Field

from protocol.directory_wire import PORT
from protocol.errors import UsageError
from protocol.hosts import endpoint, parse_endpoint
from protocol.provisioning.home import Home
from protocol.provisioning.toml_settings import Endpoint, TomlSettings, settings_of


class SearcherSettings(TomlSettings):
    """Written when the kit is installed, and the searcher's own from then on."""

    directory: Endpoint = Field(description="HOST:PORT of the coordinator's directory and relay.")
    timeout: float = Field(default=60.0, gt=0, description="Seconds that one call may take.")
    assistant_url: str = Field(
        default="",
        description="A language model for follow-ups, such as http://127.0.0.1:11434/v1; or none.",
    )
    assistant_model: str = Field(default="", description="What the model is called there.")
    assistant_key_file: str = Field(
        default="",
        description="File (mode 600) with the key of an account there, if one is needed.",
    )


def settings_path(home: Home) -> Path:
    """Where the file lies."""
    return home.root / "searcher.toml"


def keep_settings(home: Home, coordinator: str) -> None:
    """Write them, unless they are there: the directory is at the coordinator that a kit names."""
    path = settings_path(home)
    if not path.exists():
        directory = endpoint(parse_endpoint(coordinator)[0], PORT)
        SearcherSettings(directory=directory).save(path)


def set_directory(home: Home, directory: str) -> None:
    """Write another HOST:PORT of the directory; the rest stays. Raises UsageError."""
    path = settings_path(home)
    known = SearcherSettings.load(path).model_dump() if path.exists() else {}
    settings_of(SearcherSettings, **known | {"directory": directory}).save(path)


def read_settings(home: Home) -> SearcherSettings:
    """Read them. Raises UsageError where no kit is installed."""
    path = settings_path(home)
    if not path.exists():
        raise UsageError(
            f"no searcher is installed in {home.root}",
            f"Install its startup kit: blindsight searcher setup KIT --home {home.root}",
        )
    return SearcherSettings.load(path)
