"""Samplers: functions over a denoiser that know noise schedules and guidance, but no modalities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor, nn

from xgem.configs.components import DiffusionConfig
from xgem.encoders.fusion import stack
from xgem.generators.context_cache import reused_context
from xgem.generators.controlnet import ControlNet
from xgem.generators.latent_diffusion import LatentDiffusion, schedule_arguments
from xgem.types import Context, InputError

Denoiser = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[int, int, Tensor], None]
StepNoise = Callable[[int], Tensor]


class DDIM(DPMSolverMultistepScheduler):
    """DDIM (Song et al. 2021), which is the first order of DPM-Solver++ (Lu et al. 2022, section 4).

    Timesteps are spaced from the noisiest one that was trained ("trailing", Lin et al. 2024, table 2). The last step
    leaves no noise. Each step goes to the noise level of the next, whatever the number of steps.
    """

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:  # pyright: ignore
        """Sets ``num_inference_steps`` timesteps, from T - 1 down."""
        trained = self.config["num_train_timesteps"]
        # diffusers' own trailing spacing gives one timestep too many at some numbers of steps (61, 103, 121, ...)
        timesteps = [round(trained * k / num_inference_steps) - 1 for k in range(num_inference_steps, 0, -1)]
        super().set_timesteps(timesteps=timesteps, device=device)  # pyright: ignore


class UniPC(UniPCMultistepScheduler):
    """UniPC (Zhao et al. 2023) that can take every trained timestep."""

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:  # pyright: ignore
        """Sets ``num_inference_steps`` timesteps, from T - 1 down."""
        # diffusers' default spacing, rounded, gives one timestep twice where all of them are used
        every = num_inference_steps == self.config["num_train_timesteps"]
        self.register_to_config(timestep_spacing="trailing" if every else "linspace")
        super().set_timesteps(num_inference_steps, device=device)


# Both DPM-Solvers use the noise levels of Karras et al. 2022 (eq. 5), which end at the lowest level of training: with
# uniform timesteps, the last step starts from so much noise that it averages out the finest detail.
SAMPLERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "dpmsolver++": lambda schedule: DPMSolverMultistepScheduler(
        algorithm_type="dpmsolver++", solver_order=2, use_karras_sigmas=True, **schedule
    ),
    "sde-dpmsolver++": lambda schedule: DPMSolverMultistepScheduler(
        algorithm_type="sde-dpmsolver++", solver_order=2, use_karras_sigmas=True, **schedule
    ),
    "ddim": lambda schedule: DDIM(algorithm_type="dpmsolver++", solver_order=1, **schedule),
    "unipc": lambda schedule: UniPC(**schedule),
}
"""Samplers by name: from the last trained timestep on, each step goes to a lower noise level, the last to none."""


STOCHASTIC = frozenset({"sde-dpmsolver++"})
"""Samplers that add noise at every step."""


FORMER_SAMPLERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "ddim-leading": lambda schedule: DDIMScheduler(
        clip_sample=False, set_alpha_to_one=False, steps_offset=1, **schedule
    ),
}
"""For replays, and for cohorts that were begun with them. ``ddim-leading`` is what ``ddim`` was until metadata format
2: it starts at a lower noise level than its initial noise has (at 400 steps, at timestep 799 of 999)."""


def make_scheduler(name: str, diffusion: DiffusionConfig) -> Any:
    """A fresh diffusers scheduler; schedulers hold state, so none is shared between requests."""
    if name in FORMER_SAMPLERS:
        return FORMER_SAMPLERS[name](schedule_arguments(diffusion))
    if name not in SAMPLERS:
        raise InputError(f"unknown sampler {name!r}: expected one of {', '.join(SAMPLERS)}")
    return SAMPLERS[name](schedule_arguments(diffusion))


def guided(model: LatentDiffusion, context: Context, scale: float, rescale: float = 0.0) -> Denoiser:
    """Classifier-free guidance (Ho & Salimans 2022, eq. 6): one batched call, not two.

    ``scale`` 1 is the plain conditional model, 0 the unconditional one. ``rescale`` in [0, 1]: how far the prediction
    gets the standard deviation of the conditional one, against saturation (Lin et al. 2024, eq. 15 and 16).
    """
    if scale == 1:
        return lambda z, t: model(z, t.expand(len(z)), context)
    batch = len(context.pooled)
    both = stack([context, model.null(batch)])  # (2b, n, c): conditional half first

    def denoise(z: Tensor, t: Tensor) -> Tensor:
        conditional, null = model(torch.cat([z, z]), t.expand(2 * batch), both).chunk(2)  # (b, *latent_shape) each
        prediction = null + scale * (conditional - null)
        if rescale == 0:
            return prediction
        axes = tuple(range(1, z.ndim))
        ratio = conditional.std(dim=axes, keepdim=True) / prediction.std(dim=axes, keepdim=True)  # (b, 1, ...)
        return prediction * (rescale * ratio + 1 - rescale)

    return denoise


class Environment(Protocol):
    """Couples outputs that are sampled jointly (implemented by ``xgem.alignment.model.Alignment``)."""

    def tokens(self, latents: Mapping[str, Tensor], t: Tensor) -> Mapping[str, Tensor]:
        """Environment tokens (b, n, d) of each output's noisy latents at timestep ``t``."""
        ...

    def seeing(self, name: str, denoiser: nn.Module, tokens: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Within this context, the denoiser of output ``name`` attends to the ``tokens`` of the others."""
        ...


@dataclass(frozen=True)
class Control:
    """An annotation that an output follows: latents (b, c, h, w) of the annotation image, conditioning scale (one
    number or (b,)), and the fraction of the steps after which control ends."""

    net: ControlNet
    annotation: Tensor
    scale: float | Tensor = 1.0
    end: float = 1.0

    def at(self, step: int, steps: int, transformer: Any) -> AbstractContextManager[None]:
        """Within this context, ``transformer`` is controlled, unless control has ended before ``step``."""
        return self.net.steering(transformer, self.annotation, self.scale) if step < self.end * steps else nullcontext()


@dataclass(frozen=True)
class Output:
    """One output to sample: its model and context, the initial noise (b, *latent_shape), its guidance scale.

    Guidance is on from the fraction ``guidance_start`` of the steps to ``guidance_end`` (Kynkaanniemi et al. 2024);
    outside, the model is the plain conditional one. ``guidance_rescale`` as :func:`guided` takes it.
    ``step_noise`` is for the samplers in ``STOCHASTIC``. ``kept``: latents z0 (b, *latent_shape) to start from instead
    of noise alone (SDEdit). ``control``: diffusion transformers only. ``area``: where ``kept`` latents may change, bool
    (b, 1, h, w); outside they follow the forward process to the end.
    """

    model: LatentDiffusion
    context: Context
    noise: Tensor
    guidance_scale: float = 1.0
    step_noise: StepNoise | None = None
    kept: Tensor | None = None
    control: Control | None = None
    guidance_start: float = 0.0
    guidance_end: float = 1.0
    guidance_rescale: float = 0.0
    area: Tensor | None = None

    def denoisers(self, steps: int) -> list[Denoiser]:
        """The denoiser of each of ``steps`` steps."""
        plain = guided(self.model, self.context, 1.0)
        with_guidance = guided(self.model, self.context, self.guidance_scale, self.guidance_rescale)
        first, last = self.guidance_start * steps, self.guidance_end * steps
        return [with_guidance if first <= step < last else plain for step in range(steps)]


@torch.inference_mode()
def sample_together(
    outputs: Mapping[str, Output],
    *,
    num_inference_steps: int,
    sampler: str = "dpmsolver++",
    environment: Environment | None = None,
    first_step: int = 0,
    callback: Callable[[str, int, int, Tensor, Tensor], None] | None = None,
) -> dict[str, Tensor]:
    """Denoise all ``outputs`` in lockstep, to latents z0 by name; an ``environment`` couples them at every step.

    Outputs with ``kept`` latents are denoised from ``first_step`` on (SDEdit, Meng et al. 2022); before that they are
    the kept latents at the noise level of the step. ``callback(name, step, timestep, latents, estimate)`` runs for
    every output after every step; the ``estimate`` of z0 is what a preview shows. Deterministic given the noise.

    Raises:
        InputError: a sampler in ``STOCHASTIC`` without ``step_noise``; more steps than timesteps were trained; outputs
            with different noise schedules.
    """
    # One scheduler per output, as they hold state; all must have the same timesteps
    schedulers = {name: make_scheduler(sampler, output.model.config.diffusion) for name, output in outputs.items()}
    for name, scheduler in schedulers.items():
        if sampler in STOCHASTIC and outputs[name].step_noise is None:
            raise InputError(f"sampler {sampler!r} adds noise at every step: expected step_noise, got none")
        trained = outputs[name].model.config.diffusion.num_train_timesteps
        if num_inference_steps > trained:
            raise InputError(f"num_inference_steps is {num_inference_steps}, expected at most {trained} for {name!r}")
        scheduler.set_timesteps(num_inference_steps, device=outputs[name].noise.device)
    timesteps = next(iter(schedulers.values())).timesteps
    if any(not torch.equal(scheduler.timesteps, timesteps) for scheduler in schedulers.values()):
        raise InputError(f"{', '.join(outputs)} have different noise schedules and cannot be sampled jointly")
    z = {name: output.model.start(output.noise, timesteps[0]) for name, output in outputs.items()}  # (b, ...) each
    denoisers = {name: output.denoisers(len(timesteps)) for name, output in outputs.items()}
    kept = {name: output.kept for name, output in outputs.items() if output.kept is not None}
    for name, scheduler in schedulers.items():
        if hasattr(scheduler, "set_begin_index"):  # what ddim was depends on the timestep only
            scheduler.set_begin_index(first_step if name in kept else 0)
    with ExitStack() as caches:
        # Project contexts and embed timesteps once
        nets = [output.model for output in outputs.values()]
        nets += [output.control.net for output in outputs.values() if output.control is not None]
        at_step = [caches.enter_context(reused_context(net, timesteps)) for net in nets]
        for step, t in enumerate(timesteps):
            if step < first_step and len(kept) == len(outputs):
                continue
            for set_step in at_step:
                set_step(step)
            # Kept latents follow the forward process until `first_step`
            if step <= first_step:
                z |= {name: _noised(schedulers[name], z0, outputs[name].noise, step) for name, z0 in kept.items()}
            # Every output sees the others as they were before this step
            tokens = {} if environment is None else environment.tokens(z, t)
            for name, output in outputs.items():
                if name in kept and step < first_step:
                    continue
                scheduler = schedulers[name]
                with ExitStack() as attached:
                    if environment is not None:
                        attached.enter_context(environment.seeing(name, output.model.net, tokens))
                    if output.control is not None:
                        attached.enter_context(output.control.at(step, len(timesteps), output.model.net))
                    prediction = denoisers[name][step](scheduler.scale_model_input(z[name], t), t)
                added = {}
                if sampler in STOCHASTIC and output.step_noise is not None:
                    added = {"variance_noise": output.step_noise(step)}
                z[name] = scheduler.step(prediction, t, z[name], **added, return_dict=False)[0]
                if output.area is not None:
                    last = step + 1 == len(timesteps)
                    outside = kept[name] if last else _noised(scheduler, kept[name], output.noise, step + 1)
                    z[name] = torch.where(output.area, z[name], outside)
                if callback is not None:
                    callback(name, step, int(t), z[name], _estimate(scheduler, z[name]))
    return z


def _estimate(scheduler: Any, z: Tensor) -> Tensor:
    """The latents z0 that the last step has predicted; what ``z`` is now, where the scheduler does not keep them."""
    predictions = getattr(scheduler, "model_outputs", None)  # in terms of z0, by all samplers of today
    return z if not predictions or predictions[-1] is None else predictions[-1]


def _noised(scheduler: Any, z0: Tensor, noise: Tensor, step: int) -> Tensor:
    """``z0`` at the noise level that the scheduler assumes before ``step``."""
    if hasattr(scheduler, "sigmas"):
        sigma = scheduler.sigmas[step].to(z0)
        return (z0 + sigma * noise) / (1 + sigma**2).sqrt()
    alpha = scheduler.alphas_cumprod[scheduler.timesteps[step].cpu()].to(z0)
    return alpha.sqrt() * z0 + (1 - alpha).sqrt() * noise


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
) -> Tensor:
    """Denoise ``noise`` (b, *latent_shape), standard normal, to latents z0 of the same shape: a single output.

    ``callback(step, timestep, latents)`` runs after every step. Otherwise as ``sample_together``.
    """
    name = model.config.modality
    return sample_together(
        {name: Output(model, context, noise, guidance_scale, step_noise)},
        num_inference_steps=num_inference_steps,
        sampler=sampler,
        callback=None if callback is None else lambda _, step, t, z, estimate: callback(step, t, z),
    )[name]
