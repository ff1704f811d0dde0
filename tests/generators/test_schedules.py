"""The samplers' noise schedules at every number of steps, and sampling with a denoiser whose answer is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler
from torch import Tensor, nn

from xgem.configs.components import DiffusionConfig
from xgem.generators.sampling import SAMPLERS, STOCHASTIC, Output, make_scheduler, sample, sample_together
from xgem.types import Context, InputError

SHAPE = (4096, 1)
EVERY = range(1, 1001)
COUNTS = (1, 2, 3, 7, 61, 333, 400, 510, 999, 1000)
"""Numbers of steps at which a sampler once crashed, gave NaN or started from the wrong noise, and their like."""


class Gaussian(nn.Module):
    """The exact denoiser of latents with mean 0 and standard deviation ``std``; keeps what it was called with."""

    std = 0.5

    def __init__(self, prediction: str = "v_prediction", steps: int = 1000) -> None:
        super().__init__()
        diffusion = DiffusionConfig(prediction_type=prediction, num_train_timesteps=steps)  # type: ignore[arg-type]
        self.config = SimpleNamespace(diffusion=diffusion, modality="frontal")
        levels = np.linspace(diffusion.beta_start**0.5, diffusion.beta_end**0.5, steps, dtype=np.float64) ** 2
        self.alphas = np.cumprod(1 - levels)
        self.seen: list[tuple[int, Tensor]] = []

    def start(self, noise: Tensor, t: Tensor) -> Tensor:
        return noise  # the mean is 0

    def forward(self, z: Tensor, t: Tensor, context: Any) -> Tensor:
        self.seen.append((int(t[0]), z.clone()))
        a, s = float(self.alphas[int(t[0])] ** 0.5), float((1 - self.alphas[int(t[0])]) ** 0.5)
        z0 = z * a * self.std**2 / (a**2 * self.std**2 + s**2)  # E[z0 | z]
        noise = (z - a * z0) / s
        return noise if self.config.diffusion.prediction_type == "epsilon" else a * noise - s * z0


def noise_of(seed: int = 0) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def drawn(model: Any, sampler: str, steps: int) -> Tensor:
    context: Any = Context(*torch.zeros(3, 1, 1, 1))
    options: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": 1.0, "sampler": sampler}
    return sample(model, context, noise_of(), step_noise=lambda step: noise_of(step + 1), **options)


@pytest.mark.parametrize("name", [pytest.param("dpmsolver++", marks=pytest.mark.slow), "ddim", "unipc"])
def test_every_number_of_steps_goes_from_the_noisiest_timestep_to_no_noise(name: str) -> None:
    model = Gaussian()
    most = float(((1 - model.alphas[-1]) / model.alphas[-1]) ** 0.5)
    scheduler = make_scheduler(name, model.config.diffusion)
    for steps in EVERY:
        scheduler.set_timesteps(steps)
        times, levels = scheduler.timesteps.numpy(), scheduler.sigmas.numpy()  # noise over signal
        assert (len(times), len(levels)) == (steps, steps + 1), steps
        assert times[0] == 999, steps
        assert times.min() >= 0, steps
        assert (np.diff(times) <= 0).all(), steps
        assert (np.diff(levels) < 0).all(), steps
        assert levels[0] == pytest.approx(most, rel=1e-4), steps
        assert levels[-1] == 0, steps
        if name in ("ddim", "unipc"):  # the others' noise levels lie between the trained ones
            assert (np.diff(times) < 0).all(), steps
            trained = ((1 - model.alphas[times]) / model.alphas[times]) ** 0.5
            np.testing.assert_allclose(levels[:-1], trained, rtol=1e-4)


def test_both_dpm_solvers_have_one_schedule() -> None:
    one, other = (make_scheduler(name, DiffusionConfig()) for name in ("dpmsolver++", "sde-dpmsolver++"))
    for steps in COUNTS:
        one.set_timesteps(steps)
        other.set_timesteps(steps)
        assert torch.equal(one.sigmas, other.sigmas)
        assert torch.equal(one.timesteps, other.timesteps)


@pytest.mark.parametrize("trained", [2, 10])
@pytest.mark.parametrize("name", SAMPLERS)
def test_short_schedules_are_used_whole(name: str, trained: int) -> None:
    model = Gaussian(steps=trained)
    for steps in range(1, trained + 1):
        assert torch.isfinite(drawn(model, name, steps)).all()
    with pytest.raises(InputError, match=f"num_inference_steps is {trained + 1}, expected at most {trained}"):
        drawn(model, name, trained + 1)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_ends_where_the_exact_denoiser_leads(name: str, prediction: str) -> None:
    for steps in COUNTS:
        model = Gaussian(prediction)
        z = drawn(model, name, steps)
        assert torch.isfinite(z).all(), steps
        assert len(model.seen) == steps
        assert model.seen[0][0] == 999, steps
        torch.testing.assert_close(model.seen[0][1], noise_of())
        if steps >= 333 and name not in STOCHASTIC:  # the flow between two Gaussians only scales (Song et al. 2021)
            torch.testing.assert_close(z, Gaussian.std * noise_of(), rtol=0.03, atol=1e-3)
        if steps >= 333:
            assert float(z.std()) == pytest.approx(Gaussian.std, rel=0.06)
        if steps == 1:  # one step is the mean of what the latents can be
            a = float(model.alphas[-1] ** 0.5)
            expected = noise_of() * a * Gaussian.std**2 / (a**2 * Gaussian.std**2 + 1 - a**2)
            torch.testing.assert_close(z, expected, rtol=1e-3, atol=1e-4)


def test_ddim_is_diffusers_where_that_is_consistent() -> None:
    """diffusers' DDIM steps by T // n: at numbers of steps that divide T, each step ends where the next begins."""
    model = Gaussian("epsilon")
    schedule = model.config.diffusion.model_dump()
    for steps in (1, 2, 50, 1000):
        theirs = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **schedule)
        theirs.set_timesteps(steps)
        z = noise_of()
        for t in theirs.timesteps:
            z = theirs.step(model(z, t[None], None), int(t), z, return_dict=False)[0]
        torch.testing.assert_close(drawn(model, "ddim", steps), z, rtol=1e-3, atol=1e-4)


def test_the_default_sampler_is_of_the_second_order() -> None:
    """Against diffusers' scheduler with every setting written out, at so few steps that the order shows."""
    results = {}
    for order in (1, 2):
        scheduler = DPMSolverMultistepScheduler(
            num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
            prediction_type="v_prediction", algorithm_type="sde-dpmsolver++", solver_order=order,
            use_karras_sigmas=True,
        )  # fmt: skip
        scheduler.set_timesteps(6)
        z, model = noise_of(), Gaussian()
        for step, t in enumerate(scheduler.timesteps):
            added = noise_of(step + 1)
            z = scheduler.step(model(z, t[None], None), int(t), z, variance_noise=added, return_dict=False)[0]
        results[order] = z
    made = drawn(Gaussian(), "sde-dpmsolver++", 6)
    torch.testing.assert_close(made, results[2], rtol=1e-4, atol=1e-5)
    assert float((made - results[1]).abs().max()) > 0.01


@pytest.mark.parametrize("name", ["ddim", "unipc"])
@pytest.mark.parametrize(("steps", "first"), [(10, 5), (400, 200), (7, 0), (3, 2)])
def test_a_start_image_gets_the_noise_of_its_first_step(name: str, steps: int, first: int) -> None:
    """SDEdit: sqrt(a) z0 + sqrt(1 - a) noise, with a of the timestep at which the denoiser is called."""
    model: Any = Gaussian()
    context: Any = Context(*torch.zeros(3, 1, 1, 1))
    start = noise_of(9)
    output = Output(model, context, noise_of(), kept=start)
    sample_together({"frontal": output}, num_inference_steps=steps, sampler=name, first_step=first)
    t, z = model.seen[0]
    scheduler = make_scheduler(name, model.config.diffusion)
    scheduler.set_timesteps(steps)
    assert t == int(scheduler.timesteps[first])
    expected = model.alphas[t] ** 0.5 * start + (1 - model.alphas[t]) ** 0.5 * noise_of()
    torch.testing.assert_close(z, expected.float(), rtol=1e-4, atol=1e-4)
    assert len(model.seen) == steps - first
