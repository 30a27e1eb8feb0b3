"""Encoders of ``transformers``, rebuilt from their configuration: no code but the library's."""

import difflib
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, MODEL_MAPPING, PretrainedConfig

from protocol.errors import MalformedMessage, UsageError
from protocol.model.encoders.backbone import pool
from protocol.model.tower_settings import TowerSettings, check_config

#: Towers of dual encoders that AutoModel does not know by themselves.
_HALVES: dict[str, Any] = {
    "align_text_model": transformers.AlignTextModel,
    "align_vision_model": transformers.AlignVisionModel,
    "siglip_text_model": transformers.SiglipTextModel,
}
#: What says nothing of the shape of a model.
_IDLE = {
    "_name_or_path",
    "architectures",
    "dtype",
    "id2label",
    "label2id",
    "model_type",
    "torch_dtype",
    "transformers_version",
}


class TransformersImage(nn.Module):
    """A vision model."""

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__()
        config = config_of(settings.image_encoder, settings.image_config)
        self.net = build(config)
        self.how = settings.image_pooling
        self.width = _map_width(self.net) or width_of(config)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features float32 [n, width] of pixels float32 [n, 3, s, s]."""
        out = self.net(pixel_values=pixels)
        return pool(out.last_hidden_state, getattr(out, "pooler_output", None), self.how)


class TransformersText(nn.Module):
    """A text model."""

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__()
        config = config_of(settings.text_encoder, settings.text_config)
        self.net = build(config)
        self.how = settings.text_pooling
        self.width = width_of(config)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Features float32 [n, width] of token ids and mask, int64 [n, t]."""
        out = self.net(input_ids=ids, attention_mask=mask)
        pooled = getattr(out, "pooler_output", None)
        return pool(out.last_hidden_state, pooled, self.how, mask)


def config_of(encoder: str, text: str) -> PretrainedConfig:
    """The configuration ``transformers:TYPE`` with the values of JSON ``text``.

    Raises UsageError for a type that this transformers does not know, with the nearest one;
    MalformedMessage for values that it refuses.
    """
    kind = encoder.removeprefix("transformers:")
    if kind not in CONFIG_MAPPING:
        near = difflib.get_close_matches(kind, list(CONFIG_MAPPING), 1)
        raise UsageError(
            f"transformers has no model of type {kind!r}",
            f"Did you mean {near[0]}?" if near else "Give the folder of a model, or its type.",
        )
    values = check_config(f"{kind} configuration", text)
    try:
        config: PretrainedConfig = CONFIG_MAPPING[kind](**values)
    except Exception as error:  # each family checks in its own way
        raise MalformedMessage(f"{kind} configuration: {error!s:.200}") from error
    return config


def spell_config(config: PretrainedConfig) -> dict[str, Any]:
    """What ``config_of`` needs to make ``config`` again, in plain JSON values."""
    values: dict[str, Any] = config.to_diff_dict()
    return {name: value for name, value in values.items() if name not in _IDLE}


def build(config: PretrainedConfig) -> nn.Module:
    """The model with random weights. Raises UsageError if there is none of this type,
    MalformedMessage if none can be built of this configuration.
    """
    kind = class_of(config)
    try:
        model: nn.Module = kind(config)
    except Exception as error:  # a width of nothing divides by zero, and so on
        raise MalformedMessage(
            f"{config.model_type} configuration: no model can be built of it: {error!s:.200}"
        ) from error
    return model


def class_of(config: PretrainedConfig) -> Any:
    """The class of the plain model; raises UsageError if there is none."""
    kind = config.model_type
    if kind not in _HALVES and type(config) not in MODEL_MAPPING:
        raise UsageError(f"transformers has no plain model of type {kind!r}")
    kinds = _HALVES[kind] if kind in _HALVES else MODEL_MAPPING[type(config)]
    return kinds[0] if isinstance(kinds, tuple) else kinds


def width_of(config: PretrainedConfig) -> int:
    """The width of a state: named differently by nearly every family."""
    for name in ("hidden_size", "dim", "d_model", "hidden_dim"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    sizes = getattr(config, "hidden_sizes", None)
    if sizes:
        return int(sizes[-1])
    raise UsageError(f"the width of a {config.model_type} model is not known")


def _map_width(net: nn.Module) -> int | None:
    """ALIGN's EfficientNet does not say how wide its last feature map is; its layers do."""
    if not isinstance(net, transformers.AlignVisionModel):
        return None
    return [one for one in net.modules() if isinstance(one, nn.BatchNorm2d)][-1].num_features
