"""Samplers: plain functions over a denoiser. They know schedules and guidance, no modality."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from rich.progress import Progress
from torch import Tensor

from xgem.configs.schema import DiffusionConfig
from xgem.encoders.fusion import stack
from xgem.generators.context_cache import reused_context
from xgem.generators.latent_diffusion import LatentDiffusion, schedule_arguments
from xgem.types import Context, InputError

Denoiser = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[int, int, Tensor], None]
StepNoise = Callable[[int], Tensor]

# The two DPM-Solvers take the steps of Karras et al. 2022 (eq. 5), which end at the least noise that was trained: with
# steps even in time, the last one starts from so much noise that the finest detail is averaged away.
SAMPLERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dpmsolver++": lambda schedule: DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, use_karras_sigmas=True, **schedule
    ),
    "sde-dpmsolver++": lambda schedule: DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_order=2, use_karras_sigmas=True, **schedule
    ),
    "ddim": lambda schedule: DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1, **schedule),
    "unipc": lambda schedule: UniPCMultistepScheduler(**schedule),
}


STOCHASTIC = frozenset({"sde-dpmsolver++"})
"""Samplers that add noise at every step."""


def make_scheduler(name: str, diffusion: DiffusionConfig) -> Any:
    """A fresh diffusers scheduler; schedulers hold state, so none is shared between requests."""
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler {name!r}: expected one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name](schedule_arguments(diffusion))


def guided(model: LatentDiffusion, context: Context, scale: float) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): one batched call, not two.

    ``scale`` 1 is the plain conditional model, 0 the unconditional one.
    """
    if scale == 1:
        return lambda z, t: model(z, t.expand(len(z)), context)
    batch = len(context.pooled)
    both = stack(context, model.null(batch))

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        conditional, null = model(torch.cat([z, z]), t.expand(2 * batch), both).chunk(2)
        return null + scale * (conditional - null)

    return denoise


@torch.inference_mode()
def sample(
    model: LatentDiffusion,
    context: Context,
    noise: Tensor,
    *,
    num_inference_steps: int,
    guidance_scale: float,
    sampler: str = "dpmsolver++",
    step_noise: StepNoise | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Denoise ``noise`` (b, *latent_shape), standard normal, to latents z0 of the same shape.

    ``callback(step, timestep, latents)`` runs after every step. Deterministic given ``noise`` and, for the samplers in
    ``STOCHASTIC``, ``step_noise``, which gives the noise of a step, of the same shape. InputError where they lack it.
    """
    if sampler in STOCHASTIC and step_noise is None:
        raise InputError(f"sampler {sampler!r} adds noise at every step: expected step_noise, got none")
    scheduler = make_scheduler(sampler, model.config.diffusion)
    scheduler.set_timesteps(num_inference_steps, device=noise.device)
    denoise = guided(model, context, guidance_scale)
    z = noise * scheduler.init_noise_sigma
    timesteps = scheduler.timesteps
    with reused_context(model, timesteps) as at_step, Progress(disable=not progress, transient=True) as bar:
        for step, t in enumerate(bar.track(timesteps, description=f"{model.config.modality}")):
            at_step(step)
            added = {"variance_noise": step_noise(step)} if step_noise is not None and sampler in STOCHASTIC else {}
            z = scheduler.step(denoise(scheduler.scale_model_input(z, t), t), t, z, **added, return_dict=False)[0]
            if callback is not None:
                callback(step, int(t), z)
    return z
