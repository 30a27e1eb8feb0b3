"""The settings of an institution's service."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from protocol.wire import NAME

Releasable = Literal["thumbnail", "caption"]
"""What a service without a policy may be told to release."""


class ServiceSettings(BaseSettings):
    """Flags win over ``BLINDSIGHT_INSTITUTION_*`` in the environment, and that over defaults."""

    model_config = SettingsConfigDict(env_prefix="BLINDSIGHT_INSTITUTION_", frozen=True)

    name: str = Field(pattern=f"^{NAME}$")
    data: Path
    index: Path
    credentials: Path
    home: Path | None = None
    """Where roster.json, policy.toml, ledger.sqlite and audit.log are; without one every
    certificate of the authority may search, without limit, and ``release`` says what leaves."""
    host: str = "127.0.0.1"
    port: int = Field(default=0, ge=0, le=65535)
    threads: int | None = Field(default=None, ge=1, le=256)
    release: frozenset[Releasable] = frozenset()
    metrics_port: int | None = Field(default=None, ge=0, le=65535)
    reflection: bool = False
    each: int = Field(default=8, ge=1, le=64)
    """Calls of one searcher under way, waiting or answered."""
    most: int = Field(default=32, ge=1, le=256)
    """Calls under way in all: so many questions are in memory."""
    connections: int = Field(default=512, ge=1, le=65_536)
    """Open in all, half-open ones too; more are closed as they come."""
    together: int = Field(default=8, ge=1, le=8)
    """Questions in one pass over the index."""
    seconds: float = Field(default=300.0, gt=0, le=86_400)
    """Of a call, its waiting included."""
