"""A table of policy.toml: strict types, no key that is not known, hyphens for underscores."""

from pydantic import BaseModel, ConfigDict


class PolicyTable(BaseModel):
    """What every table of the file has in common."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        alias_generator=lambda name: name.replace("_", "-"),
    )
