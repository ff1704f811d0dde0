"""The forward process is diffusers'; denoisers refuse what does not fit and start as they should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler

from xgem.checkpoints.component import component_class
from xgem.checkpoints.store import init_checkpoint, load_component, save_component
from xgem.types import CheckpointError, ShapeError


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


def with_mean(preset: Any, name: str, keeps: bool = True) -> Any:
    settings = preset.components[name].model_copy(update={"latents_mean": keeps})
    return component_class(settings.kind).from_config(settings)


@pytest.mark.parametrize("name", ["frontal", "report"])
def test_sampling_starts_where_the_forward_process_ends(debug_preset: Any, name: str) -> None:
    model = with_mean(debug_preset, name)
    latents = torch.randn(4000, *model.latent_shape) + 3
    model.measure(latents)
    last = torch.tensor(999)
    started = model.start(torch.randn(latents.shape), last)
    ended, _ = model.noisy(latents, torch.randn(latents.shape), last.expand(len(latents)))
    assert 0.15 < float(ended.mean()) == pytest.approx(float(started.mean()), abs=0.03)  # 3 times 0.068
    torch.testing.assert_close(
        model.start(torch.zeros(1, *model.latent_shape), last)[0], 0.06826 * model.latents_mean, rtol=1e-3, atol=0
    )


def test_without_a_mean_sampling_starts_from_noise_alone(debug_preset: Any) -> None:
    model = with_mean(debug_preset, "frontal", keeps=False)
    model.measure(torch.ones(5, *model.latent_shape))
    noise = torch.randn(2, *model.latent_shape)
    assert torch.equal(model.start(noise, torch.tensor(999)), noise)
    assert "latents_mean" not in model.config.model_dump()  # what was recorded before there was one stays equal


def test_the_mean_is_of_the_checkpoint(debug_preset: Any, tmp_path: Path) -> None:
    model = with_mean(debug_preset, "frontal")
    model.measure(torch.randn(50, *model.latent_shape) * 3)
    components = debug_preset.components | {"frontal": model.config}
    init_checkpoint(tmp_path, debug_preset.model_copy(update={"components": components}))
    save_component(tmp_path, "frontal", model, dtype=torch.float16)
    loaded: Any = load_component(tmp_path, "frontal")
    assert torch.equal(loaded.latents_mean, model.latents_mean)
    (tmp_path / "frontal" / "latents_mean.safetensors").unlink()
    with pytest.raises(CheckpointError, match="latents_mean"):
        load_component(tmp_path, "frontal")
