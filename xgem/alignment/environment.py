"""The environment encoder V of one output (XGeM 2.3): a noisy latent and its timestep to a few unit tokens."""

from __future__ import annotations

import torch.nn.functional as F
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import Tensor, nn

from xgem.types import ShapeError

_GROUPS = 8


class _ResidualBlock(nn.Module):
    """GroupNorm, SiLU, a layer, plus time, GroupNorm, SiLU, a layer; for (b, c) or (b, c, h, w)."""

    def __init__(self, channels: int, time_dim: int, spatial: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(_GROUPS, channels), nn.GroupNorm(_GROUPS, channels)
        self.time = nn.Linear(time_dim, channels)
        self.layer1, self.layer2 = (
            nn.Conv2d(channels, channels, 3, padding=1) if spatial else nn.Linear(channels, channels) for _ in range(2)
        )

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.layer1(F.silu(self.norm1(x)))
        h = h + self.time(F.silu(time)).view(*h.shape[:2], *[1] * (h.ndim - 2))
        return x + self.layer2(F.silu(self.norm2(h)))


class EnvironmentEncoder(nn.Module):
    """Noisy latents (b, *latent_shape) at timesteps (b,) to unit tokens (b, tokens, dim).

    Latents (c, h, w) pass through convolutions at half resolution and are averaged over space; latents (d,) pass
    through linear layers.
    """

    def __init__(self, latent_shape: tuple[int, ...], width: int, tokens: int, dim: int) -> None:
        super().__init__()
        self.latent_shape, self.tokens = latent_shape, tokens
        spatial = len(latent_shape) == 3
        self.frequencies = Timesteps(width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimestepEmbedding(width, width)
        first = latent_shape[0]
        self.enter = nn.Conv2d(first, width, 3, stride=2, padding=1) if spatial else nn.Linear(first, width)
        self.block = _ResidualBlock(width, width, spatial)
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.leave = nn.Linear(width, tokens * dim)

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        if z.shape[1:] != self.latent_shape:
            raise ShapeError(f"environment encoder: expected latents (b, {self.latent_shape}), got {tuple(z.shape)}")
        time = self.time(self.frequencies(t.expand(len(z))).to(z.dtype))  # (b, width)
        h = F.silu(self.norm(self.block(self.enter(z), time)))  # (b, width, h/2, w/2) or (b, width)
        tokens = self.leave(h.flatten(2).mean(dim=2) if h.ndim == 4 else h).unflatten(1, (self.tokens, -1))  # (b, n, d)
        return F.normalize(tokens, dim=-1)


def summary(tokens: Tensor) -> Tensor:
    """An output's tokens (b, n, d) as one unit vector (b, d), for the contrastive loss."""
    return F.normalize(tokens.mean(dim=1), dim=-1)
