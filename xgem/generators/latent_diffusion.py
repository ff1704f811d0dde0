"""Latent diffusion, one generator per modality (XGeM 2.2, Eq. 3)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xgem.checkpoints.component import Component
from xgem.checkpoints.pretrained import load_pretrained
from xgem.configs.components import (
    DiffusionConfig,
    DiTGeneratorConfig,
    FCReportGeneratorConfig,
    ImageGeneratorConfig,
    ReportGeneratorConfig,
)
from xgem.encoders.fusion import ContextFusion
from xgem.generators.dit import CaptionContext, DiT
from xgem.generators.fc_unet import FCUNet
from xgem.generators.image_unet import ImageUNet
from xgem.generators.report_unet import ReportUNet
from xgem.types import CheckpointError, Context, Encoded

_MEAN = "latents_mean.safetensors"
_UNetConfig = ImageGeneratorConfig | ReportGeneratorConfig | FCReportGeneratorConfig


def schedule_arguments(config: DiffusionConfig) -> dict[str, Any]:
    """The forward process as arguments of diffusers' schedulers."""
    return config.model_dump()


class Fusion(Protocol):
    """A module that fuses a generator's prompts into one context."""

    def null(self, batch: int) -> Context: ...

    def __call__(self, encoded: Mapping[str, Encoded], keep: Mapping[str, Tensor] | None = None) -> Context: ...


def _fusion(config: _UNetConfig, width: int) -> ContextFusion:
    return ContextFusion(config.prompts, config.context, config.context_dim, config.pooled_dim, width)


class LatentDiffusion(Component):
    """A denoiser, the fusion of its prompts, and its forward process."""

    config: Any
    net: Any

    def __init__(self, config: _UNetConfig | DiTGeneratorConfig, fusion: Fusion) -> None:
        super().__init__()
        self.config = config
        self.fusion = fusion
        schedule = DDPMScheduler(**schedule_arguments(config.diffusion))
        self.register_buffer("alphas_cumprod", schedule.alphas_cumprod, persistent=False)
        self.alphas_cumprod: Tensor
        # Not a weight: checkpoints of before have none, and training measures it anew
        self.register_buffer("latents_mean", torch.zeros(config.latent_shape), persistent=False)  # (*latent_shape,)
        self.latents_mean: Tensor

    @classmethod
    def from_config(cls, config: Any, assets: Path | None = None) -> Self:
        """Fresh weights; the mean of the training latents from ``assets``, where ``config.latents_mean`` is set."""
        module = super().from_config(config, assets)
        if assets is not None and config.latents_mean:
            module.latents_mean.copy_(load_file(assets / _MEAN)["mean"])
        return module

    def save_assets(self, directory: Path) -> None:
        if self.config.latents_mean:
            save_file({"mean": self.latents_mean.half().contiguous()}, directory / _MEAN)

    def measure(self, latents: Tensor) -> None:
        """Keeps the mean of ``latents`` (n, *latent_shape), those that it is trained on, rounded to float16."""
        if self.config.latents_mean:
            self.latents_mean.copy_(latents.float().mean(dim=0).half())

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent."""
        return self.config.latent_shape

    def fuse(self, encoded: Mapping[str, Encoded], keep: Mapping[str, Tensor] | None = None) -> Context:
        """One context from any non-empty subset of the prompts, see ``ContextFusion``."""
        return self.fusion(encoded, keep)

    def null(self, batch: int) -> Context:
        """The null context, for guidance and for unconditional generation."""
        return self.fusion.null(batch)

    def checkpoint_activations(self, on: bool = True) -> None:
        """Whether the denoiser's blocks compute their activations again in the backward pass, which saves memory."""
        self.net.checkpoint_activations(on)

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        """Noise or velocity (b, ...), by ``config.diffusion``, predicted for noisy z (b, ...) at timesteps t (b,)."""
        return self.net(z, t, context)

    def start(self, noise: Tensor, t: Tensor) -> Tensor:
        """Latents (b, ...) to start sampling from at timestep ``t`` (): ``noise`` (b, ...), and of the mean of the
        training latents what the forward process leaves at t.

        A schedule that does not end at zero signal leaves a part of every latent at its last timestep; denoisers have
        never seen noise alone (Lin et al. 2024, section 3.1).
        """
        left = self.alphas_cumprod[t].sqrt() * self.latents_mean  # (*latent_shape,)
        return noise + left.to(noise)

    def noisy(self, z0: Tensor, noise: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy latents z_t (b, ...) and the denoiser's target (b, ...) in the mean squared error of Eq. 3."""
        alpha = self.alphas_cumprod[t].view(-1, *[1] * (z0.ndim - 1))  # (b, 1, ...)
        a, s = alpha.sqrt(), (1 - alpha).sqrt()
        # Noise (Ho et al. 2020), or velocity (Salimans & Ho 2022, appendix D)
        target = noise if self.config.diffusion.prediction_type == "epsilon" else a * noise - s * z0
        return a * z0 + s * noise, target


class ImageLatentDiffusion(LatentDiffusion):
    """Latent diffusion over image latents (c, h, w)."""

    kind = "image_generator"

    def __init__(self, config: ImageGeneratorConfig) -> None:
        super().__init__(config, _fusion(config, config.cross_attention_dim))
        self.net = ImageUNet(config)

    @classmethod
    def from_config(cls, config: ImageGeneratorConfig, assets: Path | None = None) -> Self:
        """Fresh weights, or those of ``config.pretrained`` (a diffusers UNet by hub id or directory).

        The paper fine-tunes Stable Diffusion's UNet, which has no projection of a pooled context: its last layer is
        then zero-initialised, so that predictions do not change. Raises CheckpointError if another weight does not fit.
        """
        module = super().from_config(config, assets)
        if config.pretrained is not None and assets is None:
            unet = module.net.unet
            source = load_pretrained(UNet2DConditionModel, config.pretrained).state_dict()
            pooled = {name: value for name, value in unet.state_dict().items() if name.startswith("class_embedding.")}
            if not pooled.keys() <= source.keys():
                nn.init.zeros_(unet.class_embedding.linear_2.weight)
                nn.init.zeros_(unet.class_embedding.linear_2.bias)
                source = {**source, **pooled}
            try:
                unet.load_state_dict(source)
            except RuntimeError as error:
                reason = str(error).splitlines()[-1].strip()
                raise CheckpointError(f"image denoiser from {config.pretrained!r}: {reason}") from None
        return module


class DiTLatentDiffusion(LatentDiffusion):
    """Latent diffusion over image latents (c, h, w) with a transformer, from a text prompt (ChexGen)."""

    kind = "dit_generator"

    def __init__(self, config: DiTGeneratorConfig) -> None:
        fusion = CaptionContext(
            config.prompts, config.context_dim, config.caption_tokens, config.pooled_dim, config.width
        )
        super().__init__(config, fusion)
        self.net = DiT(config)


class ReportLatentDiffusion(LatentDiffusion):
    """Latent diffusion over report latents (d,)."""

    kind = "report_generator"

    def __init__(self, config: ReportGeneratorConfig) -> None:
        super().__init__(config, _fusion(config, config.context_width))
        self.net = ReportUNet(config)


class FCReportLatentDiffusion(LatentDiffusion):
    """Latent diffusion over report latents (d,), with the denoiser that CoDi and XGeM publish."""

    kind = "fc_report_generator"

    def __init__(self, config: FCReportGeneratorConfig) -> None:
        super().__init__(config, _fusion(config, config.cross_attention_dim))
        self.net = FCUNet(config)
