"""What a training run is: agreed by the coordinator, obeyed by every institution.

It travels in Flower's run-config, whose values are plain scalars under hyphenated names.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from protocol.errors import MalformedMessage
from protocol.model.towers import TowerSettings

_RANGES: dict[str, tuple[type, float, float]] = {
    "rounds": (int, 1, 10_000),
    "local_epochs": (int, 1, 1_000),
    "batch_size": (int, 2, 4_096),
    "learning_rate": (float, 1e-7, 1.0),
    "seed": (int, 0, 2**63 - 1),
    "quorum": (int, 1, 10_000),
    "deadline_seconds": (float, 1e-3, 86_400),
}


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """One training run.

    ``learning_rate`` is the peak of a cosine over the whole run; ``quorum`` the least number of
    valid replies that makes a round count; ``deadline_seconds`` how long a round waits for them.
    Raises MalformedMessage for a value out of range.
    """

    rounds: int = 6
    local_epochs: int = 4
    batch_size: int = 16
    learning_rate: float = 2e-3
    seed: int = 0
    quorum: int = 2
    deadline_seconds: float = 600.0
    towers: TowerSettings = field(default_factory=TowerSettings)

    def __post_init__(self) -> None:
        for name, (kind, low, high) in _RANGES.items():
            value = getattr(self, name)
            whole = type(value) is int
            if not (whole or (kind is float and type(value) is float and math.isfinite(value))):
                raise _wrong(name, kind, low, high, value)
            if not low <= value <= high:
                raise _wrong(name, kind, low, high, value)

    @property
    def epochs(self) -> int:
        """How often each example is seen in the whole run."""
        return self.rounds * self.local_epochs

    def to_run_config(self) -> dict[str, bool | float | int | str]:
        """As Flower's run-config: ``local_epochs`` becomes "local-epochs", towers become JSON."""
        values: dict[str, Any] = {_key(name): getattr(self, name) for name in _RANGES}
        return values | {"towers": self.towers.to_json()}

    @classmethod
    def from_run_config(cls, config: Mapping[str, Any]) -> Self:
        """Reads the keys above; absent ones keep their defaults, others are not looked at.

        Raises MalformedMessage for a value of a wrong type or range.
        """
        found = {
            field.name: config[_key(field.name)]
            for field in fields(cls)
            if _key(field.name) in config
        }
        if "towers" in found:
            if not isinstance(found["towers"], str):
                raise MalformedMessage("training setting towers: expected JSON text")
            found["towers"] = TowerSettings.from_json(found["towers"])
        return replace(cls(), **found)


def _key(name: str) -> str:
    return name.replace("_", "-")


def _wrong(name: str, kind: type, low: float, high: float, got: object) -> MalformedMessage:
    what = "a whole number" if kind is int else "a number"
    return MalformedMessage(
        f"training setting {_key(name)}: expected {what} from {low:g} to {high:g}, got {got!r:.40}"
    )
