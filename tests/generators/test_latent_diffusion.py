"""The forward process is diffusers'; denoisers refuse what does not fit and start as they should."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from xgem.checkpoints.component import component_class
from xgem.types import ShapeError


@pytest.mark.parametrize("name", ["frontal", "report"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear"])
def test_noise_and_target_are_diffusers(debug_preset: Any, name: str, prediction: str, schedule: Any) -> None:
    settings = debug_preset.components[name]
    diffusion = settings.diffusion.model_copy(update={"prediction_type": prediction, "beta_schedule": schedule})
    model: Any = component_class(settings.kind).from_config(settings.model_copy(update={"diffusion": diffusion}))
    theirs: Any = DDPMScheduler(beta_schedule=schedule, beta_start=0.00085, beta_end=0.012)
    z0, noise = torch.randn(5, *model.latent_shape), torch.randn(5, *model.latent_shape)
    t = torch.tensor([0, 1, 500, 998, 999])
    z, target = model.noisy(z0, noise, t)
    torch.testing.assert_close(z, theirs.add_noise(z0, noise, t))
    torch.testing.assert_close(target, noise if prediction == "epsilon" else theirs.get_velocity(z0, noise, t))


@pytest.mark.parametrize("name", ["frontal", "report"])
def test_latents_of_another_shape_are_refused(debug_parts: dict[str, Any], name: str) -> None:
    model = debug_parts[name]
    wrong = torch.zeros(1, *(side + 1 for side in model.latent_shape))
    with pytest.raises(ShapeError, match="expected"):
        model(wrong, torch.tensor([1]), model.null(1))


def test_an_untrained_report_denoiser_predicts_nothing(debug_preset: Any) -> None:
    settings = debug_preset.components["report"]
    model: Any = component_class(settings.kind).from_config(settings)
    assert not model(torch.randn(2, 16), torch.tensor([3, 700]), model.null(2)).any()


@pytest.mark.parametrize("name", ["frontal", "report"])
def test_samples_of_a_batch_do_not_see_each_other(debug_parts: dict[str, Any], name: str) -> None:
    model = debug_parts[name]
    z, t = torch.randn(3, *model.latent_shape), torch.tensor([1, 400, 999])
    with torch.no_grad():
        together = model(z, t, model.null(3))
        for i in range(3):
            torch.testing.assert_close(model(z[i : i + 1], t[i : i + 1], model.null(1))[0], together[i])


@pytest.mark.parametrize("name", ["frontal", "report"])
def test_the_timestep_matters(debug_parts: dict[str, Any], name: str) -> None:
    model = debug_parts[name]
    z = torch.randn(1, *model.latent_shape)
    with torch.no_grad():
        early, late = (model(z, torch.tensor([t]), model.null(1)) for t in (10, 900))
    assert float((early - late).abs().max()) > 1e-5
