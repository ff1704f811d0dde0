"""Environment encoders and joint attentions with the layers that CoDi and XGeM publish (Tang et al. 2023; XGeM 2.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch.nn.functional as F
from diffusers.models.downsampling import Downsample2D
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn

from xgem.alignment.cross_attention import Couplings
from xgem.alignment.unet_blocks import FCBlock, FullyConnected, SpatialTransformer
from xgem.configs.alignment import TransformerAlignmentConfig
from xgem.types import CheckpointError, ShapeError


class LevelledEncoder(nn.Module):
    """V of one output: noisy latents (b, *latent_shape) at timesteps (b,) to one unit token (b, 1, dim).

    Latents (c, h, w) pass through levels of convolutions, halved between them, and are averaged over space; latents
    (d,) through levels of fully connected blocks. The time embedding is its own; in the published code it is the
    denoiser's, which a conversion copies.
    """

    def __init__(self, latent_shape: tuple[int, ...], config: TransformerAlignmentConfig) -> None:
        super().__init__()
        self.latent_shape = latent_shape
        first, n, spatial = latent_shape[0], config.report_tokens, len(latent_shape) == 3
        groups, time_dim, channels = config.norm_num_groups, 4 * config.width, config.width // 2
        self.frequencies = Timesteps(config.width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(config.width, time_dim)
        self.enter = nn.Conv2d(first, channels, 3, padding=1) if spatial else nn.Linear(first, channels * n)
        self.levels = nn.ModuleList()
        for multiple in config.channel_mult:
            if self.levels:
                self.levels.append(
                    Downsample2D(channels, use_conv=True, name="op")
                    if spatial
                    else FullyConnected(channels, channels, n)
                )
            width = multiple * config.width
            self.levels.append(
                ResnetBlock2D(in_channels=channels, out_channels=width, temb_channels=time_dim, groups=groups, eps=1e-5)
                if spatial
                else FCBlock(channels, width, n, time_dim, groups)
            )
            channels = width
        self.norm = nn.GroupNorm(groups, channels)
        self.leave = (
            nn.Conv2d(channels, config.dim, 3, padding=1) if spatial else FullyConnectedToOne(channels, config.dim, n)
        )

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        if z.shape[1:] != self.latent_shape:
            raise ShapeError(f"environment encoder: expected latents (b, {self.latent_shape}), got {tuple(z.shape)}")
        time = self.time(self.frequencies(t.expand(len(z))).to(z.dtype))  # (b, time_dim)
        h = self.enter(z)
        if h.ndim == 2:
            h = h.unflatten(1, (-1, cast(FullyConnectedToOne, self.leave).tokens))  # (b, c, n)
        for layer in self.levels:
            h = layer(h, time) if isinstance(layer, ResnetBlock2D | FCBlock) else layer(h)
        token = self.leave(F.silu(self.norm(h)))  # (b, dim, h, w) or (b, dim, 1)
        return F.normalize(token.flatten(2).mean(dim=2), dim=-1)[:, None]


class FullyConnectedToOne(nn.Linear):
    """A linear layer from all channels of all n tokens to one: (b, c, n) to (b, out, 1)."""

    def __init__(self, channels: int, out: int, tokens: int) -> None:
        super().__init__(channels * tokens, out)
        self.tokens = tokens

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.flatten(1))[..., None]


class JointTransformers(Couplings):
    """A spatial transformer after every layer of one generator that attends; ``channels`` of their hidden states."""

    def __init__(self, channels: tuple[int, ...], config: TransformerAlignmentConfig) -> None:
        super().__init__()
        self.sites = nn.ModuleList(
            [SpatialTransformer(c, config.heads, config.dim, config.norm_num_groups) for c in channels]
        )

    def blocks(self, denoiser: nn.Module) -> Sequence[nn.Module]:
        found: Any = getattr(denoiser, "joint_sites", None)
        if found is None:
            raise CheckpointError(
                f"a transformer_alignment attends in image_generator and fc_report_generator, not in a "
                f"{type(denoiser).__name__}: they are not of the same model"
            )
        return found()
