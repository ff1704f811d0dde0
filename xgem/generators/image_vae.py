"""The image codec: diffusers' AutoencoderKL, with pixels folded into channels to save time at full resolution."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import torch
from diffusers import AutoencoderKL
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from einops import rearrange
from torch import Tensor, nn

from xgem.checkpoints.component import Component
from xgem.checkpoints.pretrained import load_pretrained
from xgem.configs.codecs import ImageVAEConfig
from xgem.types import ShapeError


class ImageVAE(Component):
    """Images (b, 1, s, s) in [-1, 1] to latents (b, c, s/f, s/f) of zero mean and unit variance, and back.

    Source: XGeM 3.2 (AutoKL, f = 8). With ``patch`` = 1, ``in_channels`` = 3 and a Stable Diffusion VAE this is the
    paper's codec: the grey channel is repeated on input and averaged on output.

    With ``shortcut``, a linear block transform runs in parallel to encoder and decoder, and the network learns the
    residual (as in DC-AE, Chen et al. 2024). Initialised from principal components (``fit_shortcut``), the codec is
    sharp from its first step, which a small network alone is not after hours of training.
    """

    kind = "image_vae"

    def __init__(self, config: ImageVAEConfig) -> None:
        super().__init__()
        self.config = config
        levels = len(config.block_out_channels)
        channels = config.in_channels * config.patch**2
        by_level: dict[str, Any] = {  # annotated as one-element tuples in diffusers
            "down_block_types": ("DownEncoderBlock2D",) * levels,
            "up_block_types": ("UpDecoderBlock2D",) * levels,
            "block_out_channels": config.block_out_channels,
        }
        self.vae = AutoencoderKL(
            in_channels=channels,
            out_channels=channels,
            **by_level,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_num_groups,
            mid_block_add_attention=config.mid_block_add_attention,
        )
        if config.shortcut:
            f, c = config.downscale, config.latent_channels
            self.enter = nn.Conv2d(1, c, f, stride=f)
            self.leave = nn.ConvTranspose2d(c, 1, f, stride=f)

    @torch.no_grad()
    def fit_shortcut(self, images: Tensor, log_variance: float = -6.0) -> None:
        """Initialise the shortcut from a principal component analysis of f x f blocks of ``images`` (n, 1, s, s).

        The network then contributes nothing, latents have unit variance, and the posterior has ``log_variance``.
        """
        f, c = self.config.downscale, self.config.latent_channels
        # Principal components of all f x f blocks
        blocks = rearrange(images, "n 1 (h p) (w q) -> (n h w) (p q)", p=f, q=f)  # (m, f*f)
        mean = blocks.mean(dim=0)
        values, vectors = torch.linalg.eigh(torch.cov((blocks - mean).T))
        basis, std = vectors[:, -c:].flip(1).T, values[-c:].flip(0).clamp(min=1e-6).sqrt()  # (c, f*f), strongest first
        enter_bias, leave_bias, moments = self.enter.bias, self.leave.bias, self.vae.quant_conv
        assert enter_bias is not None
        assert leave_bias is not None
        assert moments is not None
        assert moments.bias is not None
        # Set both convolutions: the projection, scaled to unit variance, and its transpose
        self.enter.weight.copy_((basis / std[:, None]).view(c, 1, f, f))
        enter_bias.copy_(-(basis @ mean) / std)
        self.leave.weight.copy_((basis * std[:, None]).view(c, 1, f, f))
        # A single bias for all pixels of a block; the rest of the mean block is left to the components
        leave_bias.fill_(mean.mean())
        # Zero the last layers of the network
        for layer in (moments, self.vae.decoder.conv_out):
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)
        moments.bias[c:] = log_variance

    @classmethod
    def from_config(cls, config: ImageVAEConfig, assets: Path | None = None) -> Self:
        if config.pretrained is None or assets is not None:  # with assets, the checkpoint supplies the weights
            return cls(config)
        vae = load_pretrained(AutoencoderKL, config.pretrained)
        source = vae.config
        scale = (1.0 / source["scaling_factor"],) * source["latent_channels"]
        config = config.model_copy(
            update={
                "patch": 1,
                "shortcut": False,
                "in_channels": source["in_channels"],
                "block_out_channels": tuple(source["block_out_channels"]),
                "layers_per_block": source["layers_per_block"],
                "latent_channels": source["latent_channels"],
                "norm_num_groups": source["norm_num_groups"],
                "mid_block_add_attention": source["mid_block_add_attention"],
                "latent_mean": (0.0,) * source["latent_channels"],
                "latent_std": scale,
            }
        )
        module = cls(config)
        module.vae.load_state_dict(vae.state_dict())
        return module

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        side = self.config.image_size // self.config.downscale
        return (self.config.latent_channels, side, side)

    def _fold(self, x: Tensor) -> Tensor:
        """(b, 1, h, w) to (b, channels * p * p, h/p, w/p)."""
        p = self.config.patch
        return rearrange(x.expand(-1, self.config.in_channels, -1, -1), "b c (h p) (w q) -> b (c p q) h w", p=p, q=p)

    def _unfold(self, x: Tensor) -> Tensor:
        """The inverse of ``_fold``; channels are averaged."""
        p = self.config.patch
        x = rearrange(x, "b (c p q) h w -> b c (h p) (w q)", p=p, q=p)
        return x.mean(dim=1, keepdim=True)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the posterior, each (b, c, h/f, w/f), before normalisation.

        Of images (b, 1, h, w) of any size that f divides: a codec is made of convolutions.
        """
        encoded = self.vae.encode(self._fold(x))
        assert isinstance(encoded, AutoencoderKLOutput)
        posterior = encoded.latent_dist
        mean = posterior.mean + self.enter(x) if self.config.shortcut else posterior.mean
        return mean, posterior.logvar

    def reconstruct(self, latents: Tensor) -> Tensor:
        """Decode latents (b, c, h, w) before normalisation to (b, 1, s, s); not clamped, to keep gradients."""
        decode: Any = self.vae.decode  # annotated for CPU tensors only
        x = self._unfold(decode(latents).sample)
        return x + self.leave(latents) if self.config.shortcut else x

    def decoder_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters that ``reconstruct`` uses."""
        decoder: list[nn.Module | None] = [self.vae.decoder, self.vae.post_quant_conv]
        for part in (*decoder, self.leave if self.config.shortcut else None):
            if part is not None:
                yield from part.parameters()

    def latent_scale(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation by which latents are normalised, (1, c, 1, 1) each."""
        c = self.config.latent_channels
        mean = like.new_tensor(self.config.latent_mean or (0.0,) * c)
        std = like.new_tensor(self.config.latent_std or (1.0,) * c)
        return mean.view(1, c, 1, 1), std.view(1, c, 1, 1)

    def encode(self, batch: Tensor) -> Tensor:
        """Normalised posterior mean, which is deterministic: (b, 1, s, s) in [-1, 1] to (b, c, s/f, s/f)."""
        size = self.config.image_size
        if batch.ndim != 4 or batch.shape[1:] != (1, size, size):
            raise ShapeError(f"image VAE: expected (b, 1, {size}, {size}), got {tuple(batch.shape)}")
        z, _ = self.moments(batch)
        mean, std = self.latent_scale(z)
        return (z - mean) / std

    def decode(self, z: Tensor, *, greedy: bool = True, generator: torch.Generator | None = None) -> Tensor:
        """Normalised latents (b, c, s/f, s/f) to images (b, 1, s, s) in [-1, 1]; deterministic."""
        del greedy, generator
        if z.shape[1:] != self.latent_shape:
            raise ShapeError(f"image VAE: expected latents (b, {self.latent_shape}), got {tuple(z.shape)}")
        mean, std = self.latent_scale(z)
        return self.reconstruct(z * std + mean).clamp(-1, 1)
