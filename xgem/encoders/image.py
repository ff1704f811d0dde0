"""One vision transformer for frontal and lateral radiographs (XGeM 3.2.1)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from xgem.configs.components import ImageEncoderConfig
from xgem.encoders.base import PromptEncoder
from xgem.encoders.pretrained import Towers, load_towers, open_clip_part, saved_architecture
from xgem.types import Encoded, ShapeError


def pyramid(patch: int, width: int) -> torch.nn.Sequential:
    """The stem of Xiao et al. 2021: 3 x 3 convolutions of stride 2, each of twice the channels of the one before.

    Images (b, 3, s, s) to (b, width, s / patch, s / patch). With group instead of batch normalisation.
    """
    levels = patch.bit_length() - 1
    channels = [3, *(max(8, width >> (levels - 1 - level)) // 8 * 8 for level in range(levels))]
    layers: list[torch.nn.Module] = []
    for before, after in pairwise(channels):
        layers += [torch.nn.Conv2d(before, after, 3, 2, 1, bias=False), torch.nn.GroupNorm(8, after), torch.nn.GELU()]
    return torch.nn.Sequential(*layers, torch.nn.Conv2d(channels[-1], width, 1))


class ImageEncoder(PromptEncoder):
    """An open_clip ViT: (b, 1, s, s) in [-1, 1] to a unit vector (b, d) and patch tokens (b, n, c).

    The grey channel is repeated three times, as pretrained towers expect. With ``config.resize``, square images of
    another size are first resized with antialiasing (256 pixels to a 224-pixel tower); otherwise ShapeError.
    """

    kind = "image_encoder"
    visual: Any
    _towers: Any

    def __init__(self, config: ImageEncoderConfig, visual: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.visual = visual or open_clip_part("transformer").VisionTransformer(
            image_size=config.image_size,
            patch_size=config.patch_size,
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            mlp_ratio=4.0,
            output_dim=config.embed_dim,
            patch_dropout=config.patch_dropout,
            pool_type="avg",
            output_tokens=True,
        )
        if config.stem == "pyramid":
            self.visual.conv1 = pyramid(config.patch_size, config.width)

    @classmethod
    def from_config(cls, config: ImageEncoderConfig, assets: Path | None = None) -> Self:
        if config.pretrained is None:
            return cls(config)
        return cls.of_towers(config, load_towers(config.pretrained) if assets is None else saved_architecture(assets))

    @classmethod
    def of_towers(cls, config: ImageEncoderConfig, towers: Towers) -> Self:
        """An encoder around the image tower of ``towers``."""
        visual = towers.visual
        visual.output_tokens = True
        module = cls(config.model_copy(update={"image_size": towers.image_size, "embed_dim": towers.embed_dim}), visual)
        module._towers = towers.described()
        return module

    def save_assets(self, directory: Path) -> None:
        if self.config.pretrained is not None:
            self._towers.save_architecture(directory)

    def encode(self, batch: Tensor) -> Encoded:
        size = self.config.image_size
        if self.config.resize and batch.ndim == 4 and batch.shape[-2] == batch.shape[-1] != size:
            batch = F.interpolate(batch, (size, size), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
        if batch.ndim != 4 or batch.shape[1:] != (1, size, size):
            raise ShapeError(f"image encoder: expected (b, 1, {size}, {size}), got {tuple(batch.shape)}")
        x = batch.expand(-1, 3, -1, -1)  # (b, 3, s, s): towers read colour images
        if self.config.pretrained is not None:
            mean, std = (x.new_tensor(v).view(1, 3, 1, 1) for v in self._towers.normalisation)
            x = ((x + 1) / 2 - mean) / std
        pooled, tokens = self.visual(x)  # (b, d), (b, n, c) with n = (s / patch)^2
        mask = torch.ones(tokens.shape[:2], dtype=torch.bool, device=x.device)
        return Encoded(F.normalize(pooled, dim=-1), tokens, mask)

    forward = encode
