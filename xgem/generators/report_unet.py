"""The report denoiser: a UNet of linear blocks over a few tokens (Versatile Diffusion's text UNet; XGeM 3.2)."""

from __future__ import annotations

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from xgem.configs.schema import ReportGeneratorConfig
from xgem.generators.context_cache import PooledEmbedding, TimeEmbedding, install_context_cache
from xgem.types import Context, ShapeError


def _zero(module: nn.Linear) -> nn.Linear:
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    return module


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, linear, time added, GroupNorm, SiLU, dropout, linear from zero; (b, n, c) to (b, n, out)."""

    def __init__(self, channels: int, out: int, time_dim: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, channels), nn.GroupNorm(groups, out)
        self.fc1, self.fc2 = nn.Linear(channels, out), _zero(nn.Linear(out, out))
        self.time = nn.Linear(time_dim, out)
        self.dropout = nn.Dropout(dropout)
        self.skip = nn.Identity() if channels == out else nn.Linear(channels, out)
        self.act = nn.SiLU()

    @staticmethod
    def _norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
        return norm(x.transpose(1, 2)).transpose(1, 2)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        h = self.fc1(self.act(self._norm(self.norm1, x))) + self.time(self.act(time))[:, None]
        return self.skip(x) + self.fc2(self.dropout(self.act(self._norm(self.norm2, h))))


class Level(nn.Module):
    """A residual block and a transformer block that attends to the tokens and to the context."""

    def __init__(self, channels: int, out: int, time_dim: int, config: ReportGeneratorConfig) -> None:
        super().__init__()
        self.block = ResidualBlock(channels, out, time_dim, config.norm_num_groups, config.dropout)
        self.attention = BasicTransformerBlock(
            out, out // config.head_dim, config.head_dim, cross_attention_dim=config.width, dropout=config.dropout
        )

    def forward(self, x: Tensor, time: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        return self.attention(self.block(x, time), encoder_hidden_states=context, encoder_attention_mask=mask)


class ReportUNet(nn.Module):
    """(b, d) noisy latents, (b,) timesteps and a context to (b, d).

    The latent becomes ``tokens`` tokens; widths grow by ``channel_mult`` and shrink back with skips; the last layer is
    zero-initialised, so that training starts from a prediction of zero.
    """

    def __init__(self, config: ReportGeneratorConfig) -> None:
        super().__init__()
        self.config = config
        time_dim = config.width * 4
        self.frequencies = Timesteps(config.width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimeEmbedding(config.width, time_dim)
        self.pooled = PooledEmbedding(config.pooled_dim, time_dim)
        self.enter = nn.Linear(config.latent_dim, config.width * config.tokens)
        widths = [config.width * multiple for multiple in config.channel_mult]
        skips, channels = [config.width], config.width
        self.down = nn.ModuleList()
        for width in widths:
            for _ in range(config.layers_per_block):
                self.down.append(Level(channels, width, time_dim, config))
                channels = width
                skips.append(channels)
        self.middle = Level(channels, channels, time_dim, config)
        self.up = nn.ModuleList()
        for width in reversed(widths):
            for _ in range(config.layers_per_block):
                self.up.append(Level(channels + skips.pop(), width, time_dim, config))
                channels = width
        self.last = ResidualBlock(
            channels + skips.pop(), config.width, time_dim, config.norm_num_groups, config.dropout
        )
        self.norm = nn.GroupNorm(config.norm_num_groups, config.width)
        self.leave = _zero(nn.Linear(config.width * config.tokens, config.latent_dim))
        install_context_cache(self)

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        if z.shape[1:] != (self.config.latent_dim,):
            raise ShapeError(f"report denoiser: expected (b, {self.config.latent_dim}), got {tuple(z.shape)}")
        time = self.time(self.frequencies(t.expand(len(z))).to(z.dtype)) + self.pooled(context.pooled)
        bias = torch.zeros_like(context.mask, dtype=z.dtype).masked_fill(~context.mask, -1e4)[:, None]
        x = self.enter(z).unflatten(1, (self.config.tokens, self.config.width))
        skips = [x]
        for level in self.down:
            x = level(x, time, context.tokens, bias)
            skips.append(x)
        x = self.middle(x, time, context.tokens, bias)
        for level in self.up:
            x = level(torch.cat([x, skips.pop()], dim=2), time, context.tokens, bias)
        x = self.last(torch.cat([x, skips.pop()], dim=2), time)
        return self.leave(nn.functional.silu(self.norm(x.transpose(1, 2)).transpose(1, 2)).flatten(1))
