"""The shape of the two towers: what every party must know to rebuild them, and nothing more.

It travels as JSON in Flower's run-config and in a release's manifest, so every value is checked.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from protocol.errors import MalformedMessage

SCRATCH = "scratch"
JSON_LETTERS = 1 << 15

_ENCODER = re.compile(r"scratch|(torchvision|transformers):[a-z0-9][a-z0-9_.-]{0,63}")
_SHA256 = re.compile(r"([0-9a-f]{64})?")
_RANGES = {
    "dim": (8, 1024, 8),
    "image_size": (16, 1024, 1),
    "image_width": (16, 256, 16),
    "image_stages": (1, 4, 1),
    "text_width": (16, 1024, 8),
    "text_layers": (1, 12, 1),
    "text_heads": (1, 16, 1),
    "buckets": (64, 1 << 18, 1),
    "max_tokens": (4, 8192, 1),
}
_CHOICES = {
    "image_resample": ("bilinear", "bicubic"),
    "image_padding": ("symmetric", "same"),
    "image_pooling": ("pooled", "cls", "mean"),
    "text_pooling": ("mean", "cls", "pooled"),
}
#: They name code: a model's own, a quantiser's, or a kernel from a hub.
_FOREIGN = {"auto_map", "quantization_config", "attn_implementation", "_attn_implementation"}
#: A configuration that claims more than this of anything is not built, whoever sends it.
_MOST = 1 << 21
_MOST_LAYERS = 256


@dataclass(frozen=True, slots=True)
class TowerSettings:
    """Both encoders and the width of an embedding, ``dim``.

    An encoder is ``scratch`` (built small, trained from nothing), ``torchvision:NAME`` (images) or
    ``transformers:TYPE``, whose configuration is ``*_config``, JSON as transformers writes it.
    ``*_weights`` and ``tokenizer`` are the SHA-256 of the pretrained weights and of the
    tokenizer that every party has to hold; empty where there are none.

    Pictures are squares of ``image_size`` pixels: squeezed where ``image_crop`` is 0, else cut
    from the middle of one whose shorter side is ``image_size / image_crop``; then scaled to 0..1
    and normalised by ``image_mean`` and ``image_std``. ``image_padding`` "same" is TensorFlow's.
    With ``image_mirror`` a picture's features are the mean of its own and its mirror image's.
    ``*_pooling`` makes one vector of a sequence: its mean, its first token's state, or what the
    encoder itself calls pooled. Captions are cut at ``max_tokens``; ``pad_to_max`` fills them up.
    The other fields shape the encoders from scratch. Raises MalformedMessage for what is out of
    range.
    """

    dim: int = 128
    image_encoder: str = SCRATCH
    image_size: int = 64
    image_crop: float = 0.0
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_resample: str = "bicubic"
    image_padding: str = "symmetric"
    image_mirror: bool = False
    image_pooling: str = "pooled"
    image_config: str = ""
    image_weights: str = ""
    image_width: int = 16
    image_stages: int = 3
    text_encoder: str = SCRATCH
    text_pooling: str = "mean"
    text_config: str = ""
    text_weights: str = ""
    tokenizer: str = ""
    max_tokens: int = 32
    pad_to_max: bool = False
    text_width: int = 64
    text_layers: int = 1
    text_heads: int = 4
    buckets: int = 4096

    def __post_init__(self) -> None:
        for name, (low, high, step) in _RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high or value % step:
                by = f" divisible by {step}" if step > 1 else ""
                raise _wrong(name, f"a whole number from {low} to {high}{by}", value)
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise _wrong(name, f"one of {', '.join(choices)}", getattr(self, name))
        for name in ("image_encoder", "text_encoder"):
            if not _matches(_ENCODER, getattr(self, name)):
                raise _wrong(
                    name, "scratch, torchvision:NAME or transformers:TYPE", getattr(self, name)
                )
        for name in ("image_weights", "text_weights", "tokenizer"):
            if not _matches(_SHA256, getattr(self, name)):
                raise _wrong(name, "a SHA-256 in hexadecimal, or nothing", getattr(self, name))
        for name in ("image_config", "text_config"):
            check_config(name, getattr(self, name))
        for name in ("image_mean", "image_std"):
            value = getattr(self, name)
            if not isinstance(value, tuple) or len(value) != 3 or not all(map(_is_level, value)):
                raise _wrong(name, "three numbers from 0 to 1", value)
        if not all(self.image_std):
            raise _wrong("image_std", "numbers above 0", self.image_std)
        if not _is_level(self.image_crop):
            raise _wrong("image_crop", "a number from 0 to 1", self.image_crop)
        if self.image_crop and self.image_crop < 0.25:
            raise _wrong("image_crop", "0, or a number from 0.25 to 1", self.image_crop)
        for name in ("pad_to_max", "image_mirror"):
            if type(getattr(self, name)) is not bool:
                raise _wrong(name, "true or false", getattr(self, name))
        if self.image_encoder == SCRATCH and self.image_size % 16:
            raise _wrong("image_size", "a multiple of 16 from scratch", self.image_size)
        if self.text_width % self.text_heads:
            raise _wrong(
                "text_width", f"a multiple of text_heads = {self.text_heads}", self.text_width
            )

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON values, by field name."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
        }

    def to_json(self) -> str:
        """The one canonical spelling: sorted keys, no spaces."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    def image_side(self) -> dict[str, Any]:
        """What an image feature depends on, in plain JSON values."""
        return {name: value for name, value in self.to_dict().items() if name.startswith("image_")}

    def text_side(self) -> dict[str, Any]:
        """What a text feature depends on, in plain JSON values."""
        others = self.image_side().keys() | {"dim"}
        return {name: value for name, value in self.to_dict().items() if name not in others}

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Rebuilds settings; raises MalformedMessage for a missing, unknown or bad value."""
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            got = sorted(map(repr, values)) if isinstance(values, Mapping) else type(values)
            raise MalformedMessage(
                f"tower settings: expected exactly {sorted(names)}, got {got!s:.300}"
            )
        read: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) and len(value) == 3 else value
            for name, value in values.items()
        }
        return cls(**read)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Rebuilds settings from JSON text of at most 32 KiB; raises MalformedMessage."""
        return cls.from_dict(_parsed("tower settings", text))


def check_config(name: str, text: object) -> dict[str, Any]:
    """Reads a transformers configuration, which may be empty; raises MalformedMessage.

    It decides what is built, so a number in it that would cost more than any known encoder is
    refused here, before transformers sees it.
    """
    if not isinstance(text, str):
        raise _wrong(name, "JSON text", text)
    values = _parsed(f"tower setting {name}", text) if text else {}
    if not isinstance(values, dict):
        raise _wrong(name, "a JSON object", values)
    if _FOREIGN & set(values):
        raise _wrong(name, "a configuration without code of its own", values)
    _check_numbers(name, "", values)
    return values


def _check_numbers(name: str, key: str, value: object) -> None:
    if isinstance(value, dict):
        for inner, one in value.items():
            _check_numbers(name, str(inner), one)
    elif isinstance(value, list):
        for one in value:
            _check_numbers(name, key, one)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        most = _MOST_LAYERS if "layer" in key or "depth" in key or "repeat" in key else _MOST
        if not math.isfinite(value) or abs(value) > most:
            raise _wrong(name, f"{key} up to {most:,}", value)


def _parsed(what: str, text: str) -> Any:
    try:
        if len(text) > JSON_LETTERS:
            raise ValueError(f"longer than {JSON_LETTERS:,} letters")
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"{what}: not JSON: {error!s:.100}") from error


def _is_level(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1  # type: ignore[operator]


def _matches(pattern: re.Pattern[str], value: object) -> bool:
    return isinstance(value, str) and pattern.fullmatch(value) is not None


def _wrong(name: str, expected: str, got: object) -> MalformedMessage:
    return MalformedMessage(f"tower setting {name}: expected {expected}, got {got!r:.60}")
