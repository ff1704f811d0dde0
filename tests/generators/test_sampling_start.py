"""Sampling that starts from given latents (SDEdit) against diffusers' schedulers, and what STOCHASTIC samplers need."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.generators.test_sampling import STEPS, B, context_of, model_of, noise_of
from xgem.generators.sampling import SAMPLERS, STOCHASTIC, Output, _noised, make_scheduler, sample, sample_together
from xgem.types import InputError


def start_of(noise: Tensor) -> Tensor:
    return torch.randn(noise.shape, generator=torch.Generator().manual_seed(11))


def step_noise(shape: tuple[int, ...]) -> Any:
    return lambda step: torch.randn(shape, generator=torch.Generator().manual_seed(100 + step))


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_latents_are_as_noisy_as_the_scheduler_takes_them_to_be(debug_preset: Any, sampler: str) -> None:
    model = model_of(debug_preset, "frontal")
    noise = noise_of(model)
    scheduler = make_scheduler(sampler, model.config.diffusion)
    scheduler.set_timesteps(STEPS)
    for step in range(STEPS):
        expected = scheduler.add_noise(start_of(noise), noise, scheduler.timesteps[step : step + 1])
        torch.testing.assert_close(_noised(scheduler, start_of(noise), noise, step), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("first", [0, 2, STEPS - 1])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_steps_from_the_first_on_are_diffusers(debug_preset: Any, sampler: str, first: int) -> None:
    model = model_of(debug_preset, "frontal")
    context, noise = context_of(model), noise_of(model)
    start, fresh = start_of(noise), step_noise(noise.shape)
    scheduler = make_scheduler(sampler, model.config.diffusion)
    scheduler.set_timesteps(STEPS)
    z = scheduler.add_noise(start, noise, scheduler.timesteps[first : first + 1])
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    for step, t in enumerate(scheduler.timesteps[first:], first):
        added = {"variance_noise": fresh(step)} if sampler in STOCHASTIC else {}
        z = scheduler.step(model(z, t.expand(B), context), t, z, **added).prev_sample
    seen: list[int] = []
    made = sample_together(
        {"frontal": Output(model, context, noise, kept=start, step_noise=fresh)},
        num_inference_steps=STEPS,
        sampler=sampler,
        first_step=first,
        callback=lambda name, step, *_: seen.append(step),
    )["frontal"]
    torch.testing.assert_close(made, z, rtol=1e-4, atol=1e-5)
    assert seen == list(range(first, STEPS))


def test_an_output_without_given_latents_takes_all_steps(debug_preset: Any) -> None:
    outputs = {}
    for name in ("frontal", "lateral"):
        model = model_of(debug_preset, name)
        outputs[name] = Output(model, context_of(model), noise_of(model), 2.0)
    outputs["frontal"] = replace(outputs["frontal"], kept=start_of(outputs["frontal"].noise))
    seen: list[tuple[str, int]] = []
    made = sample_together(
        outputs, num_inference_steps=3, first_step=2, callback=lambda name, step, *_: seen.append((name, step))
    )
    assert seen == [("lateral", 0), ("lateral", 1), ("frontal", 2), ("lateral", 2)]
    lateral = outputs["lateral"]
    alone = sample(lateral.model, lateral.context, lateral.noise, num_inference_steps=3, guidance_scale=2.0)
    torch.testing.assert_close(made["lateral"], alone, rtol=0, atol=0)


@pytest.mark.parametrize("sampler", sorted(STOCHASTIC))
def test_noise_of_steps_is_needed_and_used(debug_preset: Any, sampler: str) -> None:
    model = model_of(debug_preset, "frontal")
    context, noise = context_of(model), noise_of(model)
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 1.0, "sampler": sampler}
    with pytest.raises(InputError, match="adds noise at every step: expected step_noise"):
        sample(model, context, noise, **options)
    steps: list[int] = []

    def fresh(step: int) -> Tensor:
        steps.append(step)
        return step_noise(noise.shape)(step)

    made = sample(model, context, noise, step_noise=fresh, **options)
    assert steps == [0, 1, 2]
    again = sample(model, context, noise, step_noise=step_noise(noise.shape), **options)
    torch.testing.assert_close(made, again, rtol=0, atol=0)
