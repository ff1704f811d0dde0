"""The report denoiser: a UNet of linear blocks over a few tokens (Versatile Diffusion's text UNet; XGeM 3.2)."""

from __future__ import annotations

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from xgem.configs.components import ReportGeneratorConfig
from xgem.generators.checkpointing import BLOCKS, recompute_blocks
from xgem.generators.context_cache import PooledEmbedding, TimeEmbedding, install_context_cache
from xgem.types import Context, ShapeError


def _zero(module: nn.Linear) -> nn.Linear:
    nn.init.zeros_(module.weight)
    nn.init.zeros_(module.bias)
    return module


class TokenLinear(nn.Linear):
    """(b, n, c) to (b, n, out), linear over ``mixed`` tokens jointly: all n (a fully connected layer), or 1."""

    def __init__(self, channels: int, out: int, mixed: int) -> None:
        super().__init__(channels * mixed, out * mixed)
        self.mixed = mixed

    def forward(self, input: Tensor) -> Tensor:
        if self.mixed == 1:
            return super().forward(input)
        return super().forward(input.flatten(1)).view(input.shape[0], self.mixed, -1)


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, linear, plus time, GroupNorm, SiLU, dropout, zero-init linear: (b, n, c) to (b, n, out)."""

    def __init__(self, channels: int, out: int, time_dim: int, config: ReportGeneratorConfig) -> None:
        super().__init__()
        groups, mixed = config.norm_num_groups, config.joined_tokens
        self.norm1, self.norm2 = nn.GroupNorm(groups, channels), nn.GroupNorm(groups, out)
        self.fc1, self.fc2 = TokenLinear(channels, out, mixed), _zero(TokenLinear(out, out, mixed))
        self.time = nn.Linear(time_dim, out * mixed)
        self.dropout = nn.Dropout(config.dropout)
        self.skip = nn.Identity() if channels == out else TokenLinear(channels, out, mixed)
        self.act = nn.SiLU()

    @staticmethod
    def _norm(norm: nn.GroupNorm, x: Tensor) -> Tensor:
        return norm(x.transpose(1, 2)).transpose(1, 2)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """x (b, n, c), time (b, time_dim)."""
        h = self.fc1(self.act(self._norm(self.norm1, x)))
        h = h + self.time(self.act(time)).view(h.shape[0], -1, h.shape[2])
        return self.skip(x) + self.fc2(self.dropout(self.act(self._norm(self.norm2, h))))


class Level(nn.Module):
    """A residual block and, if ``attends``, a transformer block with cross-attention to the context."""

    def __init__(self, channels: int, out: int, time_dim: int, config: ReportGeneratorConfig, attends: bool) -> None:
        super().__init__()
        self.block = ResidualBlock(channels, out, time_dim, config)
        heads, size = out // config.head_dim, config.head_dim
        self.attention = (
            BasicTransformerBlock(out, heads, size, cross_attention_dim=config.context_width, dropout=config.dropout)
            if attends
            else None
        )

    def forward(self, x: Tensor, time: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """x (b, n, c), time (b, time_dim), context (b, m, width), mask (b, 1, m) added to attention scores."""
        x = self.block(x, time)
        if self.attention is None:
            return x
        return self.attention(x, encoder_hidden_states=context, encoder_attention_mask=mask)


class ReportUNet(nn.Module):
    """Noisy latents (b, d), timesteps (b,) and a context to a prediction (b, d).

    The latent becomes ``tokens`` tokens, of all of it or (``separate``) of one part each; widths grow by
    ``channel_mult`` and shrink again with skip connections, with a linear layer between levels. The last layer is
    zero-initialised: training starts from a prediction of zero.
    """

    def __init__(self, config: ReportGeneratorConfig) -> None:
        super().__init__()
        self.config = config
        time_dim = config.width * 4
        mixed = config.joined_tokens
        self.frequencies = Timesteps(config.width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimeEmbedding(config.width, time_dim)
        self.pooled = PooledEmbedding(config.pooled_dim, time_dim)
        parts = config.tokens if config.separate else 1
        self.enter = nn.Linear(config.latent_dim // parts, config.width * config.tokens // parts)
        self.position = nn.Parameter(torch.randn(parts, config.width) * 0.02) if config.separate else None
        widths = [config.width * multiple for multiple in config.channel_mult]
        attention = config.attention or (True,) * len(widths)
        # Down: levels of growing width with a linear layer between them; every output has a skip connection
        skips, channels = [config.width], config.width
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for depth, (width, attends) in enumerate(zip(widths, attention, strict=True)):
            if depth:
                self.down.append(TokenLinear(channels, channels, mixed))
                skips.append(channels)
            for _ in range(config.layers_per_block):
                self.down.append(Level(channels, width, time_dim, config, attends))
                channels = width
                skips.append(channels)
        self.middle = Level(channels, channels, time_dim, config, attends=True)
        self.middle_block = ResidualBlock(channels, channels, time_dim, config)
        # Up: the same in reverse, with one more block per level to match the skips
        for depth, (width, attends) in reversed(list(enumerate(zip(widths, attention, strict=True)))):
            for _ in range(config.layers_per_block + 1):
                self.up.append(Level(channels + skips.pop(), width, time_dim, config, attends))
                channels = width
            if depth:
                self.up.append(TokenLinear(channels, channels, mixed))
        self.norm = nn.GroupNorm(config.norm_num_groups, config.width)
        self.leave = _zero(nn.Linear(config.width * config.tokens // parts, config.latent_dim // parts))
        install_context_cache(self)

    def checkpoint_activations(self, on: bool = True) -> None:
        """Whether its blocks compute their activations again in the backward pass, which saves memory."""
        recompute_blocks(self, on, (*BLOCKS, ResidualBlock))

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        if z.shape[1:] != (self.config.latent_dim,):
            raise ShapeError(f"report denoiser: expected (b, {self.config.latent_dim}), got {tuple(z.shape)}")
        time = self.time(self.frequencies(t.expand(z.shape[0])).to(z.dtype)) + self.pooled(
            context.pooled
        )  # (b, 4 width)
        bias = torch.zeros_like(context.mask, dtype=z.dtype).masked_fill(~context.mask, -1e4)[:, None]  # (b, 1, n)
        x = self._to_tokens(z)  # (b, tokens, width)
        skips = [x]
        for layer in self.down:
            x = layer(x, time, context.tokens, bias) if isinstance(layer, Level) else layer(x)
            skips.append(x)
        x = self.middle_block(self.middle(x, time, context.tokens, bias), time)
        for layer in self.up:
            if isinstance(layer, Level):
                x = layer(torch.cat([x, skips.pop()], dim=2), time, context.tokens, bias)
            else:
                x = layer(x)
        x = nn.functional.silu(self.norm(x.transpose(1, 2)).transpose(1, 2))
        return self.leave(x.flatten(1)) if self.position is None else self.leave(x).flatten(1)

    def _to_tokens(self, z: Tensor) -> Tensor:
        """z (b, d) as tokens (b, tokens, width)."""
        if self.position is None:
            return self.enter(z).view(z.shape[0], self.config.tokens, self.config.width)
        return self.enter(z.reshape(z.shape[0], self.config.tokens, -1)) + self.position
