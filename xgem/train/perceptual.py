"""SqueezeNet's features of ImageNet, for losses that compare images as a network sees them.

Iandola et al. 2016 (arXiv:1602.07360), in the sparse 8-bit form of Han et al. 2016 (arXiv:1510.00149). Codecs train
with it; MobileNetV2, by which generated images are judged, has no part in training.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from xgem.checkpoints.locate import ASSETS
from xgem.types import CheckpointError
from xgem.utils.files import one_line

SHIPPED: Final = ASSETS / "perceptual" / "model.safetensors"
TAPS: Final = {4: 128, 7: 256, 12: 512}
"""Layers of torchvision's ``squeezenet1_0`` that are compared, at a 4th, 8th and 16th of the resolution: channels."""
_MEAN: Final = (104.0, 117.0, 123.0)  # Caffe's, of blue, green and red
_WIDTH: Final = 64


class PerceptualFeatures(nn.Module):
    """Frozen feature maps of grey images."""

    mean: Tensor

    def __init__(self, file: Path = SHIPPED) -> None:
        """Raises CheckpointError if the file is missing or does not hold SqueezeNet's features."""
        from torchvision.models import squeezenet1_0

        super().__init__()
        self.layers: nn.Sequential = squeezenet1_0().features[: max(TAPS) + 1]  # type: ignore[assignment]
        try:
            self.layers.load_state_dict({name: value.float() for name, value in load_file(file).items()})
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{file}: not SqueezeNet's features ({one_line(error)}); see benchmarks/squeezenet.py"
            ) from None
        self.register_buffer("mean", torch.tensor(_MEAN).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> PerceptualFeatures:
        """Stays in evaluation mode."""
        del mode
        return super().train(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images (b, 1, h, w) in [-1, 1] to a map (b, c, h', w') for each tap, of unit length at each place."""
        x = (x + 1) * 127.5 - self.mean  # (b, 3, h, w)
        maps = []
        for number, layer in enumerate(self.layers):
            x = layer(x)
            if number in TAPS:
                maps.append(x * torch.rsqrt(x.float().square().sum(dim=1, keepdim=True) + 1e-6))
        return maps


def perceptual_distance(x: Sequence[Tensor], y: Sequence[Tensor]) -> Tensor:
    """Mean over taps and places of the squared distance between unit vectors (Zhang et al. 2018, without weights)."""
    return torch.stack([(a - b).square().sum(dim=1).mean() for a, b in zip(x, y, strict=True)]).mean()


class FeatureDiscriminator(nn.Module):
    """A logit for each place of each feature map, high for real images.

    Source: a discriminator on frozen features of ImageNet, Sauer et al. 2021 (arXiv:2111.01007), without their mixing
    of channels and scales.
    """

    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, _WIDTH, 1), nn.LeakyReLU(0.2),
                nn.Conv2d(_WIDTH, _WIDTH, 3, padding=1), nn.GroupNorm(8, _WIDTH), nn.LeakyReLU(0.2),
                nn.Conv2d(_WIDTH, 1, 1),
            )
            for channels in TAPS.values()
        )  # fmt: skip

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (b, c, h', w') to logits (b, 1, h', w')."""
        # Unit vectors of many channels have small entries; the heads see entries of unit variance
        return [head(x * x.shape[1] ** 0.5) for head, x in zip(self.heads, maps, strict=True)]
