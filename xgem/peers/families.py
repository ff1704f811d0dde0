"""What training takes of each family of pipelines: prompts, latents, the noise of a time, and the denoiser's target.

All are of one form: at a time, noisy latents are ``a z + s n`` of latents z and noise n, and the denoiser learns a
linear combination of both. Denoising diffusion (Ho et al. 2020) has discrete times, and learns n, or v (Salimans & Ho
2022); flow matching (Lipman et al. 2023; Esser et al. 2024) has a = 1 - s, and learns n - z.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from xgem.peers.folder import PipelineFolder
from xgem.types import ConfigError

Conditions = Mapping[str, Any]
"""Keyword arguments of a denoiser that prompts become."""
Call = Callable[..., Tensor]
"""A denoiser as it is called with keyword arguments; returns (b, ...)."""
EDGE: Final = 1e-6


class Family(ABC):
    """One family's adapter to a loaded pipeline.

    ``guidance``: the value of a guidance embedding (Flux), where the denoiser has one. ``mean``, ``std``: of the
    logit-normal density of times (Esser et al. 2024, eq. 19), where times are continuous.
    """

    objective: ClassVar[str]

    def __init__(
        self, pipe: Any, folder: PipelineFolder, *, guidance: float = 1.0, mean: float = 0.0, std: float = 1.0
    ) -> None:
        self.pipe, self.folder, self.guidance, self.mean, self.std = pipe, folder, guidance, mean, std
        self.scheduler_config: Mapping[str, Any] = pipe.scheduler.config

    @property
    def denoiser(self) -> nn.Module:
        """The network that is trained."""
        return getattr(self.pipe, self.folder.denoiser)

    @property
    def patch(self) -> int:
        """Latent positions in a patch of the denoiser, in each direction."""
        return int(self.folder.config(self.folder.denoiser).get("patch_size") or 1)

    def latent_shape(self, size: int) -> tuple[int, int, int]:
        """Of images of ``size`` pixels; ConfigError where they do not divide into patches."""
        unit = self.folder.scale * self.patch
        if size % unit:
            raise ConfigError(f"resolution {size}: expected a multiple of {unit} for a {self.folder.kind.__name__}")
        return int(self.folder.config("vae")["latent_channels"]), size // self.folder.scale, size // self.folder.scale

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Conditions:
        """What the denoiser attends to, by the pipeline's own ``encode_prompt``; no guidance."""

    def latents(self, images: Tensor, noise: Tensor) -> Tensor:
        """Latents of images (b, 3, s, s) in [-1, 1], in the denoiser's scale; ``noise`` draws from the posterior."""
        config, encoded = self.pipe.vae.config, self.pipe.vae.encode(images)
        if hasattr(encoded, "latent"):  # a deterministic autoencoder (DC-AE)
            z = encoded.latent
        else:
            posterior = encoded.latent_dist
            z = posterior.mean + posterior.std * noise
        return (z - (getattr(config, "shift_factor", None) or 0.0)) * config.scaling_factor

    @abstractmethod
    def time(self, u: Tensor) -> Tensor:
        """Times (b,), as the pipeline passes them to its denoiser, for ``u`` (b,) uniform in [0, 1)."""

    @abstractmethod
    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        """a and s (b,) of the noisy latents a z + s n at these times."""

    @abstractmethod
    def target(self, z: Tensor, noise: Tensor, a: Tensor, s: Tensor) -> Tensor:
        """What the denoiser learns of latents and noise (b, ...), with a and s of shapes that broadcast."""

    def noisy(self, z: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Noisy latents and the target at ``time`` (b,)."""
        a, s = (one.reshape(-1, *(1 for _ in z.shape[1:])).to(z) for one in self.coefficients(time))
        return a * z + s * noise, self.target(z, noise, a, s)

    @abstractmethod
    def predict(self, call: Call, z: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """The denoiser's prediction for noisy latents (b, c, h, w), in the form of the target."""


class Denoising(Family):
    """Denoising diffusion with the scheduler's own betas: times are drawn uniformly."""

    objective = "denoising"

    def __init__(self, pipe: Any, folder: PipelineFolder, **options: Any) -> None:
        from diffusers import DDPMScheduler

        super().__init__(pipe, folder, **options)
        scheduler: Any = DDPMScheduler.from_config(pipe.scheduler.config)
        self.kind = str(scheduler.config.prediction_type)
        if self.kind not in ("epsilon", "v_prediction", "sample"):
            raise ConfigError(
                f"prediction type {self.kind!r}: expected epsilon, v_prediction or sample for a {folder.kind.__name__}"
            )
        self.alphas: Tensor = scheduler.alphas_cumprod.double()  # (times,)

    def time(self, u: Tensor) -> Tensor:
        return (u * len(self.alphas)).long().clamp(max=len(self.alphas) - 1)

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        alphas = self.alphas.to(time.device)[time.long()]
        return alphas.sqrt(), (1 - alphas).sqrt()

    def target(self, z: Tensor, noise: Tensor, a: Tensor, s: Tensor) -> Tensor:
        return {"epsilon": noise, "sample": z}.get(self.kind, a * noise - s * z)


class Flow(Family):
    """Flow matching: s is logit-normal, shifted towards noise by the scheduler's constant shift (Esser et al. 2024,
    eq. 23); a shift that depends on the resolution is one of sampling alone."""

    objective = "flow matching"
    scale: ClassVar[float] = 1000.0
    """Of the times that the pipeline passes to its denoiser."""

    @property
    def shift(self) -> float:
        if self.scheduler_config.get("use_dynamic_shifting"):
            return 1.0
        return float(self.scheduler_config.get("shift") or self.scheduler_config.get("flow_shift") or 1.0)

    def time(self, u: Tensor) -> Tensor:
        logit = self.mean + self.std * torch.special.ndtri(u.double().clamp(EDGE, 1 - EDGE))
        s = torch.sigmoid(logit)
        return (self.shift * s / (1 + (self.shift - 1) * s) * self.scale).float()

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        s = time.double() / self.scale
        return 1 - s, s

    def target(self, z: Tensor, noise: Tensor, a: Tensor, s: Tensor) -> Tensor:
        del a, s
        return noise - z


class StableDiffusion(Denoising):
    """Stable Diffusion 1 and 2, RoentGen, and RadEdit with its own text encoder."""

    def encode(self, texts: Sequence[str]) -> Conditions:
        embeds, _ = self.pipe.encode_prompt(list(texts), self.pipe.device, 1, False)
        return {"encoder_hidden_states": embeds}  # (b, n, d)

    def predict(self, call: Call, z: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        return call(sample=z, timestep=time, **conditions)


class StableDiffusionXL(StableDiffusion):
    """Stable Diffusion XL, whose UNet is told the size of the images too (Podell et al. 2023)."""

    def encode(self, texts: Sequence[str]) -> Conditions:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            list(texts), device=self.pipe.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": embeds, "added_cond_kwargs": {"text_embeds": pooled}}

    def predict(self, call: Call, z: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        side = z.shape[-1] * self.folder.scale
        sizes = torch.tensor([side, side, 0, 0, side, side], device=z.device, dtype=z.dtype).repeat(len(z), 1)
        added = {**conditions["added_cond_kwargs"], "time_ids": sizes}  # (b, 6): original size, crop, target size
        return call(sample=z, timestep=time, **{**conditions, "added_cond_kwargs": added})


class StableDiffusion3(Flow):
    """Stable Diffusion 3 and 3.5."""

    def encode(self, texts: Sequence[str]) -> Conditions:
        embeds, _, pooled, _ = self.pipe.encode_prompt(
            prompt=list(texts), prompt_2=None, prompt_3=None, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled}

    def predict(self, call: Call, z: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        return call(hidden_states=z, timestep=time, **conditions)


class PixArt(Denoising):
    """PixArt-alpha and -sigma: half of the channels are a variance, which has no loss."""

    def encode(self, texts: Sequence[str]) -> Conditions:
        embeds, mask, _, _ = self.pipe.encode_prompt(
            list(texts), do_classifier_free_guidance=False, device=self.pipe.device
        )
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    def predict(self, call: Call, z: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        added: dict[str, Any] = {"resolution": None, "aspect_ratio": None}
        if self.folder.config(self.folder.denoiser).get("use_additional_conditions"):
            side = z.shape[-1] * self.folder.scale
            added["resolution"] = torch.full((len(z), 2), float(side), device=z.device, dtype=z.dtype)
            added["aspect_ratio"] = torch.ones(len(z), 1, device=z.device, dtype=z.dtype)
        made = call(hidden_states=z, timestep=time, added_cond_kwargs=added, **conditions)
        return made[:, : z.shape[1]]


class Sana(Flow):
    """Sana: a linear transformer on the latents of a deep compression autoencoder."""

    def encode(self, texts: Sequence[str]) -> Conditions:
        embeds, mask, _, _ = self.pipe.encode_prompt(
            list(texts),
            False,
            device=self.pipe.device,
            max_sequence_length=self.folder.defaults["max_sequence_length"],
            complex_human_instruction=self.folder.defaults["complex_human_instruction"],
        )
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    def predict(self, call: Call, z: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        scale = float(self.folder.config(self.folder.denoiser).get("timestep_scale") or 1.0)
        made = call(hidden_states=z, timestep=time * scale, **conditions)
        return made[:, : z.shape[1]]


class Lumina2(Flow):
    """Lumina Image 2.0, whose time runs from noise to images, and whose target is z - n."""

    scale = 1.0

    def encode(self, texts: Sequence[str]) -> Conditions:
        embeds, mask, _, _ = self.pipe.encode_prompt(
            list(texts), do_classifier_free_guidance=False, device=self.pipe.device
        )
        return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}

    def time(self, u: Tensor) -> Tensor:
        return 1 - super().time(u)

    def coefficients(self, time: Tensor) -> tuple[Tensor, Tensor]:
        s, a = super().coefficients(time)
        return a, s

    def target(self, z: Tensor, noise: Tensor, a: Tensor, s: Tensor) -> Tensor:
        return -super().target(z, noise, a, s)

    def predict(self, call: Call, z: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        return call(hidden_states=z, timestep=time, **conditions)


class Flux(Flow):
    """Flux: latents are packed in patches of 2 x 2, and the guidance scale is an input of the distilled ones."""

    scale = 1.0

    @property
    def patch(self) -> int:
        return 2

    def encode(self, texts: Sequence[str]) -> Conditions:
        embeds, pooled, ids = self.pipe.encode_prompt(list(texts), None, device=self.pipe.device)
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled, "txt_ids": ids}

    def predict(self, call: Call, z: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        b, c, h, w = z.shape
        packed = self.pipe._pack_latents(z, b, c, h, w)  # (b, h/2 * w/2, 4 c)
        guidance = None
        if self.folder.config(self.folder.denoiser).get("guidance_embeds"):
            guidance = torch.full((b,), self.guidance, device=z.device)
        made = call(
            hidden_states=packed,
            timestep=time,
            guidance=guidance,
            img_ids=self.pipe._prepare_latent_image_ids(b, h // 2, w // 2, z.device, z.dtype),
            **conditions,
        )
        return self.pipe._unpack_latents(made, h * self.folder.scale, w * self.folder.scale, self.folder.scale)


FAMILIES: Final[dict[str, type[Family]]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "PixArtAlphaPipeline": PixArt,
    "PixArtSigmaPipeline": PixArt,
    "SanaPipeline": Sana,
    "Lumina2Pipeline": Lumina2,
    "FluxPipeline": Flux,
}
"""By the class of the pipeline."""


def family_of(folder: PipelineFolder) -> type[Family]:
    """The adapter of a pipeline's family; ConfigError lists those that can be trained."""
    name = folder.kind.__name__
    if name not in FAMILIES:
        raise ConfigError(f"a {name} cannot be trained here, only: {', '.join(FAMILIES)}")
    return FAMILIES[name]
