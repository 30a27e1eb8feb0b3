"""Encoders as a user names them, and pretrained weights as a party holds them.

    scratch                                 small, trained from nothing
    torchvision:mobilenet_v2                images; weights from a file, else random
    transformers:FOLDER or transformers:HUB/NAME
                                            images or texts, with the weights that lie there

``?key=value&key=value`` after a name overrides how pictures are prepared or vectors pooled: size,
crop, mean, std, resample, padding, mirror (0 or 1), pooling, max_tokens. Nothing is fetched from
a hub unless that was asked for, no code but the libraries' is run, and weights are safetensors:
numbers alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from protocol.errors import DataError, MalformedMessage, UsageError
from protocol.model.adapters import set_trainable, twin
from protocol.model.encoders import joint, local
from protocol.model.encoders.torchvision_models import transform_of
from protocol.model.encoders.weights import Weights, fit, read_weights
from protocol.model.losses import initial_bias, initial_scale
from protocol.model.settings import TrainingSettings
from protocol.model.tower_settings import SCRATCH, TowerSettings
from protocol.model.towers import TwoTowers

_OVERRIDES: dict[str, Any] = {
    "size": int,
    "crop": float,
    "mean": float,
    "std": float,
    "resample": str,
    "padding": str,
    "mirror": lambda text: {"0": False, "1": True}[text],
    "pooling": str,
    "max_tokens": int,
}
MAX_PARAMETERS = 2_000_000_000
KEYS = ("image-encoder", "image-weights", "text-encoder", "joint-encoder", "download")


@dataclass(frozen=True, slots=True)
class EncoderChoice:
    """What a user asks for: see the head of this file. ``dim`` of None leaves the default."""

    image_encoder: str = SCRATCH
    image_weights: str = ""
    text_encoder: str = SCRATCH
    joint_encoder: str = ""
    dim: int | None = None
    download: bool = False

    @classmethod
    def from_config(cls, config: Mapping[str, Any], dim: int | None = None) -> "EncoderChoice":
        """From Flower's run-config or node-config; raises UsageError for a wrong type."""
        found: dict[str, Any] = {}
        for key in KEYS:
            name = key.replace("-", "_")
            value = config.get(key, getattr(cls(), name))
            if type(value) is not type(getattr(cls(), name)):
                raise UsageError(
                    f"{key}: expected text (download: true or false), got {value!r:.40}"
                )
            found[name] = value
        return cls(**found, dim=dim)

    def to_config(self) -> dict[str, bool | str]:
        """As Flower's run-config or node-config."""
        return {key: getattr(self, key.replace("-", "_")) for key in KEYS}


@dataclass(frozen=True, slots=True, eq=False)
class Pretrained:
    """Towers and what of their weights is already known, by the names of ``TwoTowers``."""

    settings: TowerSettings
    weights: Weights
    tokenizer: str

    @classmethod
    def load(cls, choice: EncoderChoice) -> "Pretrained":
        """Reads the encoders of ``choice``.

        Raises UsageError for a name that is unknown (with the nearest known one) or does not fit,
        DataError for files that are missing, damaged or do not fit, each with what to do.
        """
        if choice.joint_encoder:
            if (choice.image_encoder, choice.text_encoder) != (SCRATCH, SCRATCH):
                raise UsageError(
                    "a joint encoder is both towers at once",
                    "Leave --image-encoder and --text-encoder out.",
                )
            return cls(
                *joint.load(
                    _after(choice.joint_encoder, "transformers"), choice.dim, choice.download
                )
            )
        settings = TowerSettings(dim=choice.dim or TowerSettings().dim)
        settings, image = _image(settings, choice)
        settings, text, tokenizer = _text(settings, choice)
        return cls(settings, {**image, **text}, tokenizer)

    def model(self, seed: int) -> TwoTowers:
        """The model before training: pretrained where there are weights, else from ``seed``.

        Raises MalformedMessage for settings that ask for more than MAX_PARAMETERS.
        """
        with torch.device("meta"):
            shape = TwoTowers(self.settings, tokenizer=self.tokenizer)
        count = sum(value.numel() for value in shape.parameters())
        if count > MAX_PARAMETERS:
            raise MalformedMessage(
                f"towers: expected at most {MAX_PARAMETERS:,} parameters, got {count:,}"
            )
        model = TwoTowers.initial(self.settings, seed, self.tokenizer)
        with torch.no_grad():
            state = model.state_dict()
            for name, value in self.weights.items():
                state[name].copy_(value)
        return model

    def start(self, settings: TrainingSettings) -> TwoTowers:
        """The model with which a run begins, what learns marked, its temperature set.

        Built once for all rounds and institutions of a process, which share what does not learn.
        """
        return twin(_template(self, settings))

    def agree(self, asked: TowerSettings) -> "Pretrained":
        """These weights under the settings of a run.

        An encoder without pretrained weights is whatever the run asks for. Raises DataError where
        the run builds on others than this party holds.
        """
        return _agreed(self, asked)


@lru_cache(maxsize=4)
def _template(pretrained: Pretrained, settings: TrainingSettings) -> TwoTowers:
    model = pretrained.model(settings.seed)
    with torch.no_grad():
        if "logit_scale" not in pretrained.weights:
            model.logit_scale.fill_(initial_scale(settings.loss, settings.temperature))
        if "logit_bias" not in pretrained.weights:
            model.logit_bias.fill_(initial_bias(settings.loss))
    return set_trainable(model, settings)


@lru_cache(maxsize=4)
def _agreed(held: Pretrained, asked: TowerSettings) -> Pretrained:
    image, text = bool(asked.image_weights), bool(asked.text_weights or asked.tokenizer)
    mine = {**(held.settings.image_side() if image else {})}
    mine |= held.settings.text_side() if text else {}
    theirs = asked.to_dict()
    for name, value in mine.items():
        if value != theirs[name]:
            raise DataError(
                f"this party holds other encoders than the run builds on: {name} is "
                f"{value!s:.40} here, {theirs[name]!s:.40} there",
                "Name the same encoders and weights as the coordinator.",
            )
    sides = tuple(side for side, held in (("image", image), ("text", text)) if held)
    weights = {
        name: value
        for name, value in held.weights.items()
        if name.startswith(sides) or (image and text)
    }
    return Pretrained(asked, weights if sides else {}, held.tokenizer if text else "")


def _image(settings: TowerSettings, choice: EncoderChoice) -> tuple[TowerSettings, Weights]:
    name, overrides = _parse(choice.image_encoder, "image")
    if name == SCRATCH:
        if choice.image_weights:
            raise UsageError(
                "the image encoder from scratch takes no weights",
                "Name the encoder that they are of: --image-encoder torchvision:NAME.",
            )
        return replace(settings, **overrides), {}
    kind, _, source = name.partition(":")
    if kind == "torchvision":
        settings = replace(settings, image_encoder=name, **transform_of(source))
        if not choice.image_weights:
            return replace(settings, **overrides), {}
        path = Path(choice.image_weights)
        weights, metadata, sha256 = read_weights(path)
        settings = replace(settings, image_weights=sha256, **_said_by_file(metadata))
        settings = replace(settings, **overrides)
        return settings, fit(settings, weights, path)
    if kind == "transformers":
        found, state = local.load_image(source, choice.download)
        return replace(settings, **(found | overrides)), state
    raise _unknown(choice.image_encoder, "image")


def _text(settings: TowerSettings, choice: EncoderChoice) -> tuple[TowerSettings, Weights, str]:
    name, overrides = _parse(choice.text_encoder, "text")
    if name == SCRATCH:
        return replace(settings, **overrides), {}, ""
    found, state, tokenizer = local.load_text(_after(name, "transformers"), choice.download)
    return replace(settings, **(found | overrides)), state, tokenizer


def _parse(text: str, side: str) -> tuple[str, dict[str, Any]]:
    """A name and its overrides, as fields of TowerSettings."""
    name, _, query = text.partition("?")
    found: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, _, value = part.partition("=")
        try:
            read = _OVERRIDES[key](value)
        except (KeyError, ValueError) as error:
            raise UsageError(
                f"{text}: {part!r} is not understood",
                f"Known: {', '.join(_OVERRIDES)}, each as key=value.",
            ) from error
        field = key if key == "max_tokens" else f"{side}_{key}"
        found[field] = (read,) * 3 if key in ("mean", "std") else read
    return name, found


def _said_by_file(metadata: Mapping[str, str]) -> dict[str, Any]:
    """What a file of weights says of its own input, where it says it in these words."""
    found: dict[str, Any] = {}
    if metadata.get("input") == "RGB 224, x/127.5-1":
        found = {"image_size": 224, "image_crop": 0.0, "image_resample": "bicubic"}
        found |= {"image_mean": (0.5,) * 3, "image_std": (0.5,) * 3}
    if "SAME padding" in metadata.get("arch", ""):
        found["image_padding"] = "same"
    return found


def _after(name: str, kind: str) -> str:
    found, _, source = name.partition(":")
    if found != kind or not source:
        raise _unknown(name, "text")
    return source


def _unknown(name: str, side: str) -> UsageError:
    return UsageError(
        f"{side} encoder {name!r} is not known",
        "Expected scratch, torchvision:NAME (images) or transformers:FOLDER_OR_NAME.",
    )
