"""Joint models as both towers at once: CLIP, SigLIP and ALIGN of ``transformers``."""

import hashlib
import json
from typing import Any

import torch
from transformers import PretrainedConfig

from protocol.errors import UsageError
from protocol.model.encoders import local
from protocol.model.encoders.transformers_models import build, spell_config, width_of
from protocol.model.encoders.weights import Weights
from protocol.model.tower_settings import TowerSettings

#: By type: how pictures and texts are pooled, and whether texts are filled up to one length.
_FAMILIES = {
    "clip": ("pooled", "pooled", False),
    "siglip": ("pooled", "pooled", True),
    "align": ("pooled", "cls", False),
}


def load(source: str, dim: int | None, download: bool) -> tuple[TowerSettings, Weights, str]:
    """Both towers: settings, weights by the names of TwoTowers, and the tokenizer's text.

    The pretrained projections become ours when ``dim`` is None or their width; another ``dim``
    starts projections from nothing. Raises UsageError for another family.
    """
    folder = local.find(source, download)
    config = local.read_config(folder)
    if config.model_type not in _FAMILIES:
        raise UsageError(
            f"{source} is of type {config.model_type}, not a joint model of pictures and texts",
            f"Known: {', '.join(_FAMILIES)}; name other encoders as image and text encoder.",
        )
    image_pooling, text_pooling, pad_to_max = _FAMILIES[config.model_type]
    weights, sha256 = local.load_weights(folder, config)
    vision, language = config.vision_config, config.text_config
    own = _projection_width(config)
    tokenizer = local.read_tokenizer(folder)
    settings = TowerSettings(
        dim=dim or own,
        image_encoder=f"transformers:{vision.model_type}",
        image_config=json.dumps(spell_config(vision)),
        image_weights=sha256,
        image_pooling=image_pooling,
        text_encoder=f"transformers:{language.model_type}",
        text_config=json.dumps(spell_config(language)),
        text_weights=sha256,
        text_pooling=text_pooling,
        tokenizer=hashlib.sha256(tokenizer.encode()).hexdigest(),
        max_tokens=min(local._LONGEST, local.positions(language)),
        pad_to_max=pad_to_max,
        **local.preparation(folder, vision),
    )
    if not weights:
        return settings, {}, tokenizer
    state = _halves(weights, vision, language, folder=str(folder))
    if settings.dim == own:
        state |= _heads(weights, own)
    return settings, state, tokenizer


def _halves(
    weights: Weights, vision: PretrainedConfig, language: PretrainedConfig, folder: str
) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = {}
    for side, prefix, config in (
        ("image", "vision_model.", vision),
        ("text", "text_model.", language),
    ):
        with torch.device("meta"):
            expected = build(config).state_dict()
        half = {name: value for name, value in weights.items() if name.startswith(prefix)}
        named = local.rename(half, expected, folder)
        state |= {f"{side}.net.{name}": value for name, value in named.items()}
    return state


def _heads(weights: Weights, own: int) -> dict[str, torch.Tensor]:
    """The pretrained projections, temperature and bias, as ours."""
    found: dict[str, torch.Tensor] = {}
    for side, name in (("image", "visual_projection"), ("text", "text_projection")):
        matrix = weights.get(f"{name}.weight", torch.eye(own))
        found[f"{side}_head.linear.weight"] = matrix
        bias = weights.get(f"{name}.bias")
        if bias is not None:  # W x + b is W (x - m) for the m with W m = -b
            mean = torch.linalg.lstsq(matrix.double(), -bias.double()).solution
            found[f"{side}_head.mean"] = mean.float()
    scale: Any = weights.get("logit_scale")
    if scale is None and "temperature" in weights:
        scale = -weights["temperature"].log()
    if scale is not None:
        found["logit_scale"] = scale.reshape(1)
    if "logit_bias" in weights:
        found["logit_bias"] = weights["logit_bias"].reshape(1)
    return found


def _projection_width(config: PretrainedConfig) -> int:
    if config.model_type == "siglip":
        return width_of(config.vision_config)
    return int(config.projection_dim)
