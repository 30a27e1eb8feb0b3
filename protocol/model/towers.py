"""The two towers: an image encoder and a text encoder that meet on one unit sphere.

The image tower is torchvision's RegNet (Radosavovic et al., arXiv:2003.13678), built small and
from nothing: a stem that cuts patches (He et al. would pool; a patch stem is half the work), one
bottleneck block a stage, and a head that still sees *where* things are, for "left of" is a
matter of place. It normalises by groups (Wu & He, arXiv:1803.08494) and not by batches: batch
statistics differ between institutions, so their average fits none, and they would be one more
thing about the data that leaves. The text tower is transformers' BERT encoder over hashed words,
averaged over the words. Neither has dropout: the same inputs give the same bits.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from threading import Lock
from typing import Any, Self

import torch
from torch import nn
from torch.nn.functional import normalize
from torchvision.models.regnet import BlockParams, RegNet
from transformers import BertConfig, BertModel

from protocol.errors import MalformedMessage
from protocol.model.tokens import HashTokenizer

_PATCH = 4
_GROUP = 8
_POOLED = 4
# torch's own initialisers draw from one generator for the whole process.
_construction = Lock()


@dataclass(frozen=True, slots=True)
class TowerSettings:
    """The shape of the towers: what every party must know to rebuild them.

    ``image_size`` is the side of the square pictures in pixels, ``dim`` the width of an
    embedding, ``image_width`` the channels of the first stage (each of the ``image_stages``
    doubles it), the rest describes the text encoder and its tokeniser.
    Raises MalformedMessage for anything out of range: settings arrive from elsewhere.
    """

    image_size: int = 64
    dim: int = 128
    image_width: int = 16
    image_stages: int = 3
    text_width: int = 64
    text_layers: int = 1
    text_heads: int = 4
    buckets: int = 4096
    max_tokens: int = 32

    def __post_init__(self) -> None:
        for name, (low, high, step) in _RANGES.items():
            value = getattr(self, name)
            if type(value) is not int or not low <= value <= high or value % step:
                raise MalformedMessage(
                    f"tower setting {name}: expected a whole number from {low} to {high}"
                    f"{f' divisible by {step}' if step > 1 else ''}, got {value!r:.40}"
                )
        if self.text_width % self.text_heads:
            raise MalformedMessage(
                f"tower setting text_width: expected a multiple of text_heads = "
                f"{self.text_heads}, got {self.text_width}"
            )

    def to_dict(self) -> dict[str, int]:
        """As plain JSON values, by field name."""
        return asdict(self)

    def to_json(self) -> str:
        """The one canonical spelling: sorted keys, no spaces."""
        return json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_dict(cls, values: object) -> Self:
        """Rebuilds settings; raises MalformedMessage for a missing, unknown or bad value."""
        names = {field.name for field in fields(cls)}
        if not isinstance(values, Mapping) or set(values) != names:
            got = sorted(map(repr, values)) if isinstance(values, Mapping) else type(values)
            raise MalformedMessage(
                f"tower settings: expected exactly {sorted(names)}, got {got!s:.300}"
            )
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Rebuilds settings from JSON text of at most 4 KiB; raises MalformedMessage."""
        try:
            if len(text) > 4096:
                raise ValueError("longer than 4,096 letters")
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise MalformedMessage(f"tower settings: not JSON: {error!s:.100}") from error
        return cls.from_dict(values)


_RANGES = {
    "image_size": (16, 512, 16),
    "dim": (8, 1024, 8),
    "image_width": (16, 256, 16),
    "image_stages": (1, 4, 1),
    "text_width": (16, 1024, 8),
    "text_layers": (1, 12, 1),
    "text_heads": (1, 16, 1),
    "buckets": (64, 1 << 18, 1),
    "max_tokens": (4, 512, 1),
}


class TwoTowers(nn.Module):
    """Both encoders and the learned temperature; every weight follows from ``seed``.

    Every parameter is float32 and there are no buffers with a state, so ``state_dict`` is all
    that is learned.
    """

    def __init__(self, settings: TowerSettings, seed: int = 0) -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = HashTokenizer(settings.buckets, settings.max_tokens)
        with _construction, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.image = _image_tower(settings)
            self.text = _text_tower(settings)
            self.project = nn.Linear(settings.text_width, settings.dim, bias=False)
            # One element and not a scalar: Flower's clipping passes over 0-d parameters.
            self.logit_scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))

    @classmethod
    def initial(cls, settings: TowerSettings, seed: int) -> Self:
        """The model before training: the same seed gives the same bits.

        The process's random state is left as it was, and threads may call this at once.
        """
        return cls(settings, seed)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeds uint8 pixels [n, 3, s, s] as float32 [n, dim] of unit length."""
        seen: torch.Tensor = self.image(pixels.float() / 127.5 - 1)
        return normalize(seen, dim=-1)

    def encode_text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embeds token ids int64 [n, t] with their mask as float32 [n, dim] of unit length."""
        states: torch.Tensor = self.text(input_ids=ids, attention_mask=mask).last_hidden_state
        weight = mask.unsqueeze(-1).to(states.dtype)
        read: torch.Tensor = self.project((states * weight).sum(1) / weight.sum(1))
        return normalize(read, dim=-1)


class _PatchStem(nn.Sequential):
    """Cuts the picture into patches and embeds each: RegNet's hook for another stem."""

    def __init__(self, width_in: int, width_out: int, norm: Any, activation: Any) -> None:
        cut = nn.Conv2d(width_in, width_out, _PATCH, stride=_PATCH, bias=False)
        super().__init__(cut, norm(width_out), activation(inplace=True))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUP, channels)


def _image_tower(settings: TowerSettings) -> nn.Module:
    stages = settings.image_stages
    widths = [settings.image_width << stage for stage in range(stages)]
    tower = RegNet(
        BlockParams(
            depths=[1] * stages,
            widths=widths,
            group_widths=[16] * stages,
            bottleneck_multipliers=[1.0] * stages,
            strides=[1] + [2] * (stages - 1),
        ),
        stem_width=widths[0],
        stem_type=_PatchStem,
        norm_layer=_group_norm,
    )
    tower.avgpool = nn.AdaptiveAvgPool2d(_POOLED)
    tower.fc = nn.Linear(widths[-1] * _POOLED**2, settings.dim, bias=False)
    checked: nn.Module = tower
    return checked


def _text_tower(settings: TowerSettings) -> nn.Module:
    return BertModel(
        BertConfig(
            vocab_size=settings.buckets,
            hidden_size=settings.text_width,
            num_hidden_layers=settings.text_layers,
            num_attention_heads=settings.text_heads,
            intermediate_size=2 * settings.text_width,
            max_position_embeddings=settings.max_tokens,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            pad_token_id=0,
        ),
        add_pooling_layer=False,
    )
