"""The diffusion transformer of ChexGen: diffusers' PixArt blocks, with captions projected once per request."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from diffusers import PixArtTransformer2DModel
from diffusers.models.embeddings import PixArtAlphaTextProjection, TimestepEmbedding
from torch import Tensor, nn

from xgem.configs.components import DiTGeneratorConfig
from xgem.encoders.fusion import fill
from xgem.generators.checkpointing import recompute_blocks
from xgem.generators.context_cache import TimeEmbedding, install_context_cache
from xgem.generators.onednn_linear import install_onednn_linear
from xgem.types import Context, Encoded, InputError, ShapeError


class CaptionContext(nn.Module):
    """Caption tokens through the caption MLP; the null context is a learned caption, through the same MLP.

    Captions of single samples can be dropped (``keep``): the learned one replaces them.
    """

    def __init__(
        self, prompts: tuple[str, ...], caption_dim: int, caption_tokens: int, pooled_dim: int, width: int
    ) -> None:
        super().__init__()
        if len(prompts) != 1:
            raise InputError(f"a diffusion transformer takes one text prompt, got {list(prompts)}")
        self.prompt, self.pooled_dim, self.length = prompts[0], pooled_dim, caption_tokens
        self.project = PixArtAlphaTextProjection(caption_dim, width)
        self.null_caption = nn.Parameter(torch.randn(caption_tokens, caption_dim) / caption_dim**0.5)

    def null(self, batch: int) -> Context:
        """The learned caption for ``batch`` samples."""
        mask = torch.ones(1, self.length, dtype=torch.bool, device=self.null_caption.device)
        caption = self._context(self.null_caption[None], mask)
        return Context(
            *(part.expand(batch, *part.shape[1:]) for part in (caption.tokens, caption.mask, caption.pooled))
        )

    def forward(self, encoded: Mapping[str, Encoded], keep: Mapping[str, Tensor] | None = None) -> Context:
        """The caption's first ``caption_tokens`` tokens (b, n, c); rows that ``keep`` drops get the null context."""
        if list(encoded) != [self.prompt]:
            raise InputError(f"this generator takes the prompt {self.prompt!r}, got {list(encoded)}")
        item = encoded[self.prompt]
        tokens, mask = item.tokens[:, : self.length], item.mask[:, : self.length]  # (b, n, c), (b, n)
        if keep is not None and not bool(keep[self.prompt].all()):
            # Dropped rows become the learned caption, which uses all tokens
            kept = keep[self.prompt].to(tokens.device)[:, None]  # (b, 1)
            lacking = self.length - tokens.shape[1]
            tokens = nn.functional.pad(tokens, (0, 0, 0, lacking))
            mask = nn.functional.pad(mask, (0, lacking)) | ~kept
            tokens = torch.where(kept[..., None], tokens, self.null_caption)
        return self._context(tokens, mask)

    def _context(self, tokens: Tensor, mask: Tensor) -> Context:
        """Projected captions (b, n, width), padded with masked tokens to a multiple of 16 for faster attention."""
        context = Context(self.project(tokens), mask, tokens.new_zeros(len(tokens), self.pooled_dim))
        return fill(context, math.ceil(mask.shape[1] / 16) * 16)


class DiT(nn.Module):
    """Noisy latents (b, c, h, w), timesteps (b,) and a context to a prediction (b, c, h, w).

    With ``learned_sigma`` the network also predicts a variance: ``predict`` returns both, ``forward`` only the former.
    """

    def __init__(self, config: DiTGeneratorConfig) -> None:
        super().__init__()
        channels, side, _ = config.latent_shape
        self.latent_shape = config.latent_shape
        self.pixart = PixArtTransformer2DModel(
            num_attention_heads=config.heads,
            attention_head_dim=config.width // config.heads,
            in_channels=channels,
            out_channels=2 * channels if config.learned_sigma else channels,
            num_layers=config.depth,
            cross_attention_dim=config.width,
            sample_size=side,
            patch_size=config.patch_size,
            caption_channels=None,  # CaptionContext projects captions, once per request
            use_additional_conditions=False,
            interpolation_scale=cast(int, config.position_scale),  # divides positions; need not be an integer
        )
        embedder = cast(TimestepEmbedding, self.pixart.adaln_single.emb.timestep_embedder)
        time = TimeEmbedding(embedder.linear_1.in_features, embedder.linear_1.out_features)
        self.pixart.adaln_single.emb.timestep_embedder = time
        install_context_cache(self.pixart)
        install_onednn_linear(self.pixart)
        self.checkpoint_activations(config.gradient_checkpointing)

    def checkpoint_activations(self, on: bool = True) -> None:
        """Whether its blocks compute their activations again in the backward pass, which saves memory."""
        recompute_blocks(self.pixart, on)

    def predict(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        """All output channels: the prediction, then (with a learned sigma) the interpolation of the variance."""
        if z.shape[1:] != self.latent_shape:
            raise ShapeError(f"diffusion transformer: expected (b, {self.latent_shape}), got {tuple(z.shape)}")
        return self.pixart(  # (b, c or 2c, h, w)
            z,
            encoder_hidden_states=context.tokens,
            timestep=t,
            encoder_attention_mask=context.mask,
            return_dict=False,
        )[0]

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        return self.predict(z, t, context)[:, : self.latent_shape[0]]
