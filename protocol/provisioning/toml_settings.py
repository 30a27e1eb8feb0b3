"""Settings in a TOML file that a person edits: written with their meaning, read with suspicion."""

import json
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from protocol.errors import UsageError
from protocol.files import read_bounded, write_atomically
from protocol.hosts import check_host, endpoint, parse_endpoint
from protocol.roster import check_name

_MAX_BYTES = 65_536
S = TypeVar("S", bound="TomlSettings")


def _by(check: Callable[[str], str]) -> AfterValidator:
    """A check of ours as one of pydantic's, which adds the name of the setting."""

    def validate(text: str) -> str:
        try:
            return check(text)
        except UsageError as error:
            raise ValueError(error.message) from error

    return AfterValidator(validate)


Port = Annotated[int, Field(ge=1, le=65535)]
Name = Annotated[str, _by(check_name)]
Host = Annotated[str, _by(check_host)]
Endpoint = Annotated[str, _by(lambda text: endpoint(*parse_endpoint(text)))]
"""HOST:PORT."""


class TomlSettings(BaseModel):
    """Flat settings, each with a description. An unknown name in the file is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def load(cls: type[S], path: Path) -> S:
        """Read a file. Raises UsageError with the line or the name that is wrong."""
        hint = f"Mend {path}; it knows: {', '.join(cls.model_fields)}."
        try:
            content = read_bounded(path, _MAX_BYTES, hint).decode()
            return cls.model_validate(tomllib.loads(content))
        except OSError as error:
            raise UsageError(
                f"{path} cannot be read: {error.strerror}", "Name a folder that was set up."
            ) from error
        except ValidationError as error:
            raise UsageError(f"{path}: {_first(error)}", hint) from error
        except (ValueError, RecursionError) as error:  # no TOML, or no UTF-8
            raise UsageError(f"{path}: {error}"[:300], hint) from error

    def save(self, path: Path) -> None:
        """Write every setting, its description above it. Raises StorageError."""
        lines = []
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            # JSON's strings and numbers are TOML's.
            shown = json.dumps(str(value) if isinstance(value, Path) else value)
            lines += [f"# {field.description}", f"{name} = {shown}", ""]
        write_atomically(path, "\n".join(lines))


def settings_of(kind: type[S], **flags: object) -> S:
    """Settings from a command's flags. Raises UsageError."""
    try:
        return kind.model_validate(flags)
    except ValidationError as error:
        raise UsageError(_first(error)) from error


def _first(error: ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    return f"{name}: {first['msg'].removeprefix('Value error, ')}, got {first['input']!r:.80}"
