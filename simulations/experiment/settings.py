"""The settings of an experiment: flags > environment > blindsight.toml > defaults."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from protocol.flags import settings_from_flags
from simulations.settings import TrainingOptions


class ExperimentSettings(TrainingOptions):  # type: ignore[misc]
    """One experiment over the pairs of ``data``.

    ``partitions`` are separated by commas; None takes ``site`` where the data names sites, and
    ``iid``, ``dirichlet:0.3`` and ``topics`` otherwise. ``seeds`` runs of each, from 0 on.
    """

    model_config = SettingsConfigDict(
        env_prefix="BLINDSIGHT_EXPERIMENT_",
        toml_file="blindsight.toml",
        toml_table_header=("experiment",),
        extra="forbid",
        frozen=True,
    )

    data: Path | None = None
    limit: int | None = Field(default=None, ge=40)
    institutions: int = Field(default=8, ge=2, le=64)
    partitions: str | None = None
    seeds: int = Field(default=3, ge=1, le=100)
    local: bool = True
    out: Path = Path("runs/experiment")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources; no .env file and no secrets folder is looked for."""
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @classmethod
    def from_flags(cls, **flags: object) -> "ExperimentSettings":
        """Take the flags that were given; raise :class:`UsageError` for a bad value anywhere."""
        return settings_from_flags(
            cls,
            "See blindsight experiment --help; settings also come from BLINDSIGHT_EXPERIMENT_* "
            "in the environment and from [experiment] in blindsight.toml.",
            **flags,
        )
