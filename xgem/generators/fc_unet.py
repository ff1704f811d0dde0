"""The report denoiser of Versatile Diffusion, CoDi and XGeM as they publish it: a UNet of fully connected blocks."""

from __future__ import annotations

import torch
from diffusers.models.embeddings import Timesteps
from torch import Tensor, nn

from xgem.alignment.unet_blocks import FCBlock, FullyConnected, SpatialTransformer, zeroed
from xgem.configs.components import FCReportGeneratorConfig
from xgem.generators.context_cache import TimeEmbedding, install_context_cache
from xgem.types import Context, ShapeError


class FCLevel(nn.Module):
    """A fully connected block and, if ``attends``, a transformer over its tokens."""

    def __init__(self, channels: int, out: int, config: FCReportGeneratorConfig, attends: bool) -> None:
        super().__init__()
        groups = config.norm_num_groups
        self.block = FCBlock(channels, out, config.tokens, 4 * config.width, groups)
        self.attention = SpatialTransformer(out, config.heads, config.cross_attention_dim, groups) if attends else None

    def forward(self, x: Tensor, time: Tensor, context: Tensor, bias: Tensor) -> Tensor:
        """x (b, c, n), time (b, time_dim), context (b, m, d), bias (b, 1, m)."""
        x = self.block(x, time)
        return x if self.attention is None else x + self.attention(x, context, bias)


class FCUNet(nn.Module):
    """Noisy latents (b, d), timesteps (b,) and a context to a prediction (b, d); zero before training.

    Source: XGeM 3.2, Versatile Diffusion (Xu et al. 2023) 3.2, and their published code.
    """

    def __init__(self, config: FCReportGeneratorConfig) -> None:
        super().__init__()
        self.config = config
        groups, n = config.norm_num_groups, config.tokens
        self.frequencies = Timesteps(config.width, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time = TimeEmbedding(config.width, 4 * config.width)
        self.enter = nn.Linear(config.latent_dim, config.width * n)
        levels = [(config.width * m, has) for m, has in zip(config.channel_mult, config.attention, strict=True)]
        # Down: levels of growing width with a linear layer between them; every output has a skip connection
        channels, skips = config.width, [config.width]
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for depth, (width, attends) in enumerate(levels):
            if depth:
                self.down.append(FullyConnected(channels, channels, n))
                skips.append(channels)
            for _ in range(config.layers_per_block):
                self.down.append(FCLevel(channels, width, config, attends))
                channels = width
                skips.append(channels)
        self.middle = FCLevel(channels, channels, config, attends=True)
        self.middle_block = FCBlock(channels, channels, n, 4 * config.width, groups)
        # Up: the same in reverse, with one more block per level to match the skips
        for depth, (width, attends) in reversed(list(enumerate(levels))):
            for _ in range(config.layers_per_block + 1):
                self.up.append(FCLevel(channels + skips.pop(), width, config, attends))
                channels = width
            if depth:
                self.up.append(FullyConnected(channels, channels, n))
        self.norm = nn.GroupNorm(groups, config.width)
        self.leave = zeroed(nn.Linear(config.width * n, config.latent_dim))
        install_context_cache(self)

    def joint_sites(self) -> list[nn.Module]:
        """The modules after which a joint attention follows, in order: levels that attend, or the linear layer behind
        the last one of its depth on the way up."""
        sites: list[nn.Module] = [layer for layer in self.down if getattr(layer, "attention", None) is not None]
        for layer, after in zip(self.up, [*list(self.up)[1:], None], strict=True):
            if getattr(layer, "attention", None) is not None:
                sites.append(after if isinstance(after, FullyConnected) else layer)
        return sites

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        if z.shape[1:] != (self.config.latent_dim,):
            raise ShapeError(f"report denoiser: expected (b, {self.config.latent_dim}), got {tuple(z.shape)}")
        time = self.time(self.frequencies(t.expand(z.shape[0])).to(z.dtype))  # (b, 4 width)
        bias = torch.zeros_like(context.mask, dtype=z.dtype).masked_fill(~context.mask, -1e4)[:, None]  # (b, 1, m)
        x = self.enter(z).view(z.shape[0], -1, self.config.tokens)  # (b, width, n)
        skips = [x]
        for layer in self.down:
            x = layer(x, time, context.tokens, bias) if isinstance(layer, FCLevel) else layer(x)
            skips.append(x)
        x = self.middle_block(self.middle(x, time, context.tokens, bias), time)
        if self.config.repeat_middle:
            skips[-1] = x
        for layer in self.up:
            if isinstance(layer, FCLevel):
                x = layer(torch.cat([x, skips.pop()], dim=1), time, context.tokens, bias)
            else:
                x = layer(x)
        return self.leave(nn.functional.silu(self.norm(x)).flatten(1))
