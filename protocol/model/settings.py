"""What a training run is: agreed by the coordinator, obeyed by every institution.

It travels in Flower's run-config, whose values are plain scalars under hyphenated names.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

from protocol.accountant import LEAST_NOISE
from protocol.errors import MalformedMessage
from protocol.model.tower_settings import TowerSettings

_RANGES: dict[str, tuple[type, float, float]] = {
    "rounds": (int, 1, 10_000),
    "local_epochs": (int, 1, 1_000),
    "batch_size": (int, 2, 65_536),
    "chunk_size": (int, 0, 65_536),
    "learning_rate": (float, 1e-7, 1.0),
    "weight_decay": (float, 0.0, 1.0),
    "margin": (float, 0.0, 2.0),
    "temperature": (float, 0.01, 1.0),
    "image_dropout": (float, 0.0, 0.95),
    "text_dropout": (float, 0.0, 0.95),
    "public_negatives": (int, 0, 65_536),
    "views": (int, 1, 64),
    "lora_rank": (int, 1, 256),
    "proximal": (float, 0.0, 100.0),
    "server_learning_rate": (float, 0.0, 10.0),
    "server_momentum": (float, 0.0, 0.9999),
    "client_fraction": (float, 0.0, 1.0),
    "patience": (int, 0, 10_000),
    "seed": (int, 0, 2**63 - 1),
    "quorum": (int, 1, 10_000),
    "deadline_seconds": (float, 1e-3, 86_400),
    "clipping_range": (float, 1e-6, 100.0),
    "max_weight": (int, 1, 1_000_000),
    "reconstruction_threshold": (float, 0.5, 0.99),
    "privacy_noise": (float, 0.0, 1000.0),
    "privacy_clip": (float, 1e-6, 1e6),
    "privacy_microbatch": (int, 1, 65_536),
    "central_noise": (float, 0.0, 1000.0),
    "central_clip": (float, 1e-6, 1e6),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "train": ("full", "heads", "lora", "ffa-lora"),
    "loss": ("info-nce", "sigmoid", "max-margin", "triplet"),
    "optimiser": ("fedavg", "fedavgm", "fedadam", "fedyogi"),
    "schedule": ("cosine", "constant", "linear"),
}
_FLAGS = ("standardise", "secure_aggregation")
_PATTERNS: dict[str, str] = {
    "compression": r"none|float16|int8|top-k:0?\.\d{1,6}",
    "image_augmentation": r"none|[a-z]+(,[a-z]+){0,15}",
    "text_augmentation": r"none|[a-z]+(,[a-z]+){0,15}",
    "lora_modules": r"[A-Za-z0-9_.*,-]{1,500}",
}


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """One training run.

    What learns: ``train`` names it (``full``: everything; ``heads``: the projections alone, on
    frozen backbones; ``lora``: low-rank changes of ``lora_modules`` besides; ``ffa-lora``: the
    same with A frozen, so that averaging B is exact, Sun et al., arXiv:2403.12313). ``loss`` with
    its ``margin`` (max-margin, triplet) or its ``temperature`` at the start, which CLIP's loss
    learns; SigLIP's starts as its paper's. ``batch_size`` items meet in one loss, ``chunk_size``
    at a time in memory (0: all at once). The augmentations are names from
    ``client.institution.augmentation``, or ``none``; of frozen features ``views`` are kept, the
    plain one and augmented ones, and ``*_dropout`` is the share of each feature that a batch does
    not see. ``public_negatives`` public captions join each batch as texts of none of its images.

    How rounds go: ``learning_rate`` is the peak of ``schedule`` over the whole run; ``proximal``
    is FedProx's mu, 0 for none; ``optimiser`` is the coordinator's, with its
    ``server_learning_rate`` (0: one that suits it) and ``server_momentum``; ``client_fraction`` of
    the institutions are drawn each round, the quorum at least; after ``patience`` rounds without a
    better mean validation recall the run ends (0: never); ``compression`` is of what an
    institution sends. ``standardise`` has image features standardised by their mean and variance
    over all institutions. ``quorum`` is the least number of valid replies that makes a round
    count; ``deadline_seconds`` how long a round waits for them.

    ``secure_aggregation`` has the coordinator see sums alone: no value of a change may be beyond
    ``clipping_range``, no institution weighs more than ``max_weight`` examples, and more than the
    share ``reconstruction_threshold`` of a round's institutions unmask its sum together.

    Differential privacy: ``privacy_noise`` is the deviation of the noise that institutions add,
    measured by how far one of their units can move a sum (0: none); ``privacy_clip`` the norm of a
    microbatch's gradient, ``privacy_microbatch`` how many units it has, of the ``batch_size`` that
    a step expects (``client.institution.privacy``). ``central_noise`` is the coordinator's,
    measured by ``central_clip``, the norm of an institution's whole change (``server.privacy``).
    Raises MalformedMessage for a value out of range, and for what noise would not cover.
    """

    rounds: int = 6
    local_epochs: int = 4
    batch_size: int = 16
    chunk_size: int = 0
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    schedule: str = "cosine"
    train: str = "full"
    lora_rank: int = 8
    lora_modules: str = "all-linear"
    loss: str = "info-nce"
    margin: float = 0.2
    temperature: float = 0.07
    image_augmentation: str = "shift"
    text_augmentation: str = "none"
    views: int = 1
    image_dropout: float = 0.0
    text_dropout: float = 0.0
    public_negatives: int = 0
    proximal: float = 0.0
    optimiser: str = "fedavg"
    server_learning_rate: float = 0.0
    server_momentum: float = 0.9
    client_fraction: float = 1.0
    patience: int = 0
    compression: str = "none"
    standardise: bool = False
    seed: int = 0
    quorum: int = 2
    deadline_seconds: float = 600.0
    secure_aggregation: bool = False
    clipping_range: float = 2.0
    max_weight: int = 10_000
    reconstruction_threshold: float = 2 / 3
    privacy_noise: float = 0.0
    privacy_clip: float = 1.0
    privacy_microbatch: int = 8
    central_noise: float = 0.0
    central_clip: float = 1.0
    towers: TowerSettings = field(default_factory=TowerSettings)

    def __post_init__(self) -> None:
        for name, (kind, low, high) in _RANGES.items():
            value = getattr(self, name)
            whole = type(value) is int
            if not (whole or (kind is float and type(value) is float and math.isfinite(value))):
                raise _wrong(name, kind, low, high, value)
            if not low <= value <= high:
                raise _wrong(name, kind, low, high, value)
        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            if value not in choices:
                raise _refused(name, f"one of {', '.join(choices)}", value)
        for name, pattern in _PATTERNS.items():
            value = getattr(self, name)
            if not isinstance(value, str) or not re.fullmatch(pattern, value):
                raise _refused(name, f"text like {pattern}", value)
        for name in _FLAGS:
            if type(getattr(self, name)) is not bool:
                raise _refused(name, "true or false", getattr(self, name))
        if self.secure_aggregation and self.compression != "none":
            raise MalformedMessage(
                "training setting compression: expected none with secure-aggregation, which sums "
                f"whole numbers of every value, got {self.compression}",
                "set compression to none, or secure-aggregation to false",
            )
        for name in ("privacy_noise", "central_noise"):
            if 0 < getattr(self, name) < LEAST_NOISE:
                raise _refused(name, f"0 or at least {LEAST_NOISE:g}", getattr(self, name))
            if getattr(self, name) and self.standardise:
                # Sums of features would leave without noise.
                raise _refused("standardise", f"false with {_key(name)}", True)
        if self.central_noise and self.compression != "none":
            # What is rounded after it was clipped may be longer than agreed.
            raise _refused("compression", "none with central-noise", self.compression)
        if self.central_noise and self.secure_aggregation and self.max_weight != 1:
            # All weigh the same, and a sum that could hold more is rounded more coarsely, which
            # would widen the noise.
            raise MalformedMessage(
                "training setting max-weight: expected 1 with central-noise and "
                f"secure-aggregation, got {self.max_weight}",
                "set max-weight to 1 (--max-weight 1)",
            )

    @property
    def epochs(self) -> int:
        """How often each example is seen in the whole run."""
        return self.rounds * self.local_epochs

    def to_run_config(self) -> dict[str, bool | float | int | str]:
        """As Flower's run-config: ``local_epochs`` becomes "local-epochs", towers become JSON."""
        names = (*_RANGES, *_CHOICES, *_PATTERNS, *_FLAGS)
        values: dict[str, Any] = {_key(name): getattr(self, name) for name in names}
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


def _refused(name: str, expected: str, got: object) -> MalformedMessage:
    return MalformedMessage(f"training setting {_key(name)}: expected {expected}, got {got!r:.40}")


def _wrong(name: str, kind: type, low: float, high: float, got: object) -> MalformedMessage:
    what = "a whole number" if kind is int else "a number"
    return _refused(name, f"{what} from {low:g} to {high:g}", got)
