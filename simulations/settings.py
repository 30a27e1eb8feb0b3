"""The settings of a simulation: flags > environment > blindsight.toml > defaults."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, create_model, model_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from protocol.flags import settings_from_flags
from simulations.options import TRAINING_FLAGS

_fields: dict[str, Any] = {name: (kind | None, None) for name, (kind, _) in TRAINING_FLAGS.items()}
TrainingOptions: Any = create_model("TrainingOptions", __base__=BaseSettings, **_fields)
"""A field for each training flag; None leaves it to ``simulations.options``."""


class SimulationSettings(TrainingOptions):  # type: ignore[misc]
    """One simulated federation.

    ``data`` is what ``blindsight data inspect`` understands; without it ``scenes`` captioned
    scenes are drawn. The same ``seed`` gives the same model, to the bit, also where ``resume`` goes
    on with a run that was killed, after its last whole round.
    """

    model_config = SettingsConfigDict(
        env_prefix="BLINDSIGHT_SIMULATE_",
        toml_file="blindsight.toml",
        toml_table_header=("simulate",),
        extra="forbid",
        frozen=True,
    )

    data: Path | None = None
    scenes: int = Field(default=3200, ge=40, le=1_000_000)
    limit: int | None = Field(default=None, ge=40)
    institutions: int | None = Field(default=None, ge=1, le=64)
    partition: str = "site"
    preset: Literal["private", "fast"] = "private"
    queries: int = Field(default=200, ge=1, le=10_000)
    baselines: bool = True
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    resume: bool = False
    out: Path = Path("runs/latest")

    @model_validator(mode="after")
    def _one_source(self) -> "SimulationSettings":
        if self.data is not None and "scenes" in self.model_fields_set:
            raise ValueError("either a data folder or a number of scenes, not both")
        return self

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
    def from_flags(cls, **flags: object) -> "SimulationSettings":
        """Take the flags that were given; raise :class:`UsageError` for a bad value anywhere."""
        return settings_from_flags(
            cls,
            "See blindsight simulate --help; settings also come from BLINDSIGHT_SIMULATE_* "
            "in the environment and from [simulate] in blindsight.toml.",
            **flags,
        )
