"""The settings of an institution's service."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from protocol.wire import NAME

Releasable = Literal["thumbnail", "caption"]
"""What a searcher may be given of an item, apart from its score."""


class ServiceSettings(BaseSettings):
    """Flags win over ``BLINDSIGHT_INSTITUTION_*`` in the environment, and that over defaults."""

    model_config = SettingsConfigDict(env_prefix="BLINDSIGHT_INSTITUTION_", frozen=True)

    name: str = Field(pattern=f"^{NAME}$")
    data: Path
    index: Path
    credentials: Path
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    threads: int | None = Field(default=None, ge=1, le=256)
    release: frozenset[Releasable] = frozenset()
