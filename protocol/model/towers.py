"""The two towers: an image encoder and a text encoder that meet on one unit sphere.

Each tower is a backbone, which makes features, and a projection to ``dim``. Backbones may be
pretrained and frozen; then their features never change and are computed once
(``client.institution.features``), and training sees projections alone.
"""

import math
from collections.abc import Sequence
from threading import Lock
from typing import Self

import torch
from torch import nn
from torch.nn.functional import normalize

from protocol.model.encoders.scratch import ScratchImage, ScratchText
from protocol.model.encoders.torchvision_models import TorchvisionImage
from protocol.model.encoders.transformers_models import TransformersImage, TransformersText
from protocol.model.tokens import HashTokenizer, JsonTokenizer, Tokenizer
from protocol.model.tower_settings import SCRATCH, TowerSettings

# torch's own initialisers draw from one generator for the whole process.
construction = Lock()


class TwoTowers(nn.Module):
    """Both encoders, their projections, and the learned temperature.

    Every weight follows from ``seed`` until pretrained ones are loaded. ``tokenizer`` is the text
    of the tokenizer.json that ``settings.tokenizer`` is the hash of, where there is one.
    It is always in eval mode: neither dropout nor batch statistics, so the same inputs give the
    same bits, and statistics of the data never travel.
    """

    _levels: torch.Tensor
    _spread: torch.Tensor

    def __init__(self, settings: TowerSettings, seed: int = 0, tokenizer: str = "") -> None:
        super().__init__()
        self.settings = settings
        self.tokenizer = _tokenizer(settings, tokenizer)
        with construction, torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.image = _image_backbone(settings)
            self.text = _text_backbone(settings)
            self.image_head = Projection(self.image.width, settings.dim)
            self.text_head = Projection(self.text.width, settings.dim)
            # One element and not a scalar: Flower's clipping passes over 0-d parameters.
            self.logit_scale = nn.Parameter(torch.full((1,), math.log(1 / 0.07)))
            self.logit_bias = nn.Parameter(torch.zeros(1))
        self.register_buffer("_levels", _channels(settings.image_mean), persistent=False)
        self.register_buffer("_spread", _channels(settings.image_std), persistent=False)
        self.eval()

    @classmethod
    def initial(cls, settings: TowerSettings, seed: int, tokenizer: str = "") -> Self:
        """The model before training: the same seed gives the same bits.

        The process's random state is left as it was, and threads may call this at once.
        """
        return cls(settings, seed, tokenizer)

    def train(self, mode: bool = True) -> Self:
        """Stays in eval mode, whatever is asked: see the class."""
        return super().train(False)

    def image_features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features float32 [n, w] of uint8 pixels [n, 3, s, s]."""
        seen = (pixels.float() / 255 - self._levels) / self._spread
        features: torch.Tensor = self.image(seen)
        if self.settings.image_mirror:
            features = (features + self.image(seen.flip(-1))) / 2
        return features

    def text_features(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Features float32 [n, w] of token ids int64 [n, t] with their mask."""
        features: torch.Tensor = self.text(ids, mask)
        return features

    def project_image(self, features: torch.Tensor) -> torch.Tensor:
        """Embeds image features as float32 [n, dim] of unit length."""
        return normalize(self.image_head(features), dim=-1)

    def project_text(self, features: torch.Tensor) -> torch.Tensor:
        """Embeds text features as float32 [n, dim] of unit length."""
        return normalize(self.text_head(features), dim=-1)

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embeds uint8 pixels [n, 3, s, s] as float32 [n, dim] of unit length."""
        return self.project_image(self.image_features(pixels))

    def encode_text(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Embeds token ids int64 [n, t] with their mask as float32 [n, dim] of unit length."""
        return self.project_text(self.text_features(ids, mask))

    def standardise(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Has image features standardised by ``mean`` and ``std``, float32 [w], from now on."""
        self.image_head.mean.copy_(mean)
        self.image_head.std.copy_(std)


class Projection(nn.Module):
    """Features to an embedding: standardised, then one matrix."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.linear = nn.Linear(width, dim, bias=False)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Returns float32 [n, dim], not yet of unit length."""
        projected: torch.Tensor = self.linear((features - self.mean) / self.std)
        return projected


def _image_backbone(settings: TowerSettings) -> ScratchImage | TorchvisionImage | TransformersImage:
    if settings.image_encoder == SCRATCH:
        return ScratchImage(settings)
    if settings.image_encoder.startswith("torchvision:"):
        return TorchvisionImage(settings)
    return TransformersImage(settings)


def _text_backbone(settings: TowerSettings) -> ScratchText | TransformersText:
    return ScratchText(settings) if settings.text_encoder == SCRATCH else TransformersText(settings)


def _tokenizer(settings: TowerSettings, text: str) -> Tokenizer:
    if settings.text_encoder == SCRATCH:
        return HashTokenizer(settings.buckets, settings.max_tokens)
    return JsonTokenizer(text, settings.tokenizer, settings.max_tokens, settings.pad_to_max)


def _channels(levels: Sequence[float]) -> torch.Tensor:
    return torch.tensor(levels, dtype=torch.float32).reshape(3, 1, 1)
