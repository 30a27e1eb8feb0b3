"""Two small encoders that are trained from nothing.

The image encoder is torchvision's RegNet (Radosavovic et al., arXiv:2003.13678): a stem that cuts
patches (He et al. would pool; a patch stem is half the work), one bottleneck block a stage, and a
coarse grid at the end instead of one mean, for "left of" is a matter of place. It normalises by
groups (Wu & He, arXiv:1803.08494) and not by batches: batch statistics differ between
institutions, so their average fits none, and they would be one more thing about the data that
leaves. The text encoder is transformers' BERT over hashed words, averaged over the words.
"""

from typing import Any

import torch
from torch import nn
from torchvision.models.regnet import BlockParams, RegNet
from transformers import BertConfig, BertModel

from protocol.model.encoders.backbone import pool
from protocol.model.tower_settings import TowerSettings

_PATCH = 4
_GROUP = 8
_POOLED = 4


class ScratchImage(nn.Module):
    """RegNet with a patch stem, a block a stage, each of twice the channels."""

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__()
        stages = settings.image_stages
        widths = [settings.image_width << stage for stage in range(stages)]
        self.net = RegNet(
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
        self.net.avgpool = nn.AdaptiveAvgPool2d(_POOLED)
        self.net.fc = nn.Identity()
        self.width = widths[-1] * _POOLED**2

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features float32 [n, width] of pixels float32 [n, 3, s, s]."""
        features: torch.Tensor = self.net(pixels)
        return features


class ScratchText(nn.Module):
    """BERT over hashed words; without dropout, so that the same inputs give the same bits."""

    def __init__(self, settings: TowerSettings) -> None:
        super().__init__()
        self.net = BertModel(
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
        self.width = settings.text_width

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Features float32 [n, width] of token ids and mask, int64 [n, t]."""
        states: torch.Tensor = self.net(input_ids=ids, attention_mask=mask).last_hidden_state
        return pool(states, None, "mean", mask)


class _PatchStem(nn.Sequential):
    """Cuts the picture into patches and embeds each: RegNet's hook for another stem."""

    def __init__(self, width_in: int, width_out: int, norm: Any, activation: Any) -> None:
        cut = nn.Conv2d(width_in, width_out, _PATCH, stride=_PATCH, bias=False)
        super().__init__(cut, norm(width_out), activation(inplace=True))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUP, channels)
