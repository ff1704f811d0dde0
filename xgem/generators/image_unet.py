"""The image denoiser: diffusers' UNet2DConditionModel with the pooled context added to the time embedding."""

from __future__ import annotations

from typing import Any, cast

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from xgem.configs.components import ImageGeneratorConfig
from xgem.generators.checkpointing import recompute_blocks
from xgem.generators.context_cache import PooledEmbedding, TimeEmbedding, install_context_cache
from xgem.types import Context, ShapeError


def _twice(block: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """In place of hidden states and skip connection (b, 2c, h, w) the hidden states twice."""
    del block
    hidden = args[0].chunk(2, dim=1)[0]  # (b, c, h, w)
    return torch.cat([hidden, hidden], dim=1), *args[1:]


class ImageUNet(nn.Module):
    """Noisy latents (b, c, h, w), timesteps (b,) and a context to a prediction (b, c, h, w)."""

    def __init__(self, config: ImageGeneratorConfig) -> None:
        super().__init__()
        self.latent_shape = config.latent_shape
        attention = config.attention
        self.unet = UNet2DConditionModel(
            sample_size=config.latent_shape[1],
            in_channels=config.latent_shape[0],
            out_channels=config.latent_shape[0],
            down_block_types=tuple("CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attention),
            up_block_types=tuple("CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attention)),
            block_out_channels=config.block_out_channels,
            layers_per_block=config.layers_per_block,
            attention_head_dim=cast("int | tuple[int]", config.attention_head_dim),  # diffusers: one per level
            cross_attention_dim=config.cross_attention_dim,
            norm_num_groups=config.norm_num_groups,
            class_embed_type="projection",
            projection_class_embeddings_input_dim=config.pooled_dim,
        )
        time = self.unet.time_embedding.linear_1
        time_dim = time.out_features
        self.unet.time_embedding = TimeEmbedding(time.in_features, time_dim)
        self.unet.class_embedding = PooledEmbedding(config.pooled_dim, time_dim)
        install_context_cache(self.unet)
        if config.repeat_middle:
            self._up[0].resnets[0].register_forward_pre_hook(_twice)

    @property
    def _up(self) -> Any:
        return self.unet.up_blocks

    def joint_sites(self) -> list[nn.Module]:
        """The modules after which a joint attention follows, in order: transformers, or the upsampling layer behind
        the last one of a level."""
        sites: list[nn.Module] = []
        for block in cast(Any, self.unet.down_blocks):
            sites += getattr(block, "attentions", ())
        for block in self._up:
            transformers = list(getattr(block, "attentions", ()))
            if transformers and block.upsamplers:
                transformers[-1] = block.upsamplers[0]
            sites += transformers
        return sites

    def checkpoint_activations(self, on: bool = True) -> None:
        """Whether its blocks compute their activations again in the backward pass, which saves memory."""
        recompute_blocks(self.unet, on)

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        if z.shape[1:] != self.latent_shape:
            raise ShapeError(f"image denoiser: expected (b, {self.latent_shape}), got {tuple(z.shape)}")
        return self.unet(  # (b, c, h, w)
            z,
            t,
            encoder_hidden_states=context.tokens,
            encoder_attention_mask=context.mask,
            class_labels=context.pooled,
            return_dict=False,
        )[0]
