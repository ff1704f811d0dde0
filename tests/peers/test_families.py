"""Every family's objective against the pipelines' own samplers: with the target predicted, images are recovered."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from tests.peers.tiny import MAKE
from xgem.peers.families import FAMILIES, Denoising, Family, Flow, Flux, Lumina2, family_of
from xgem.peers.folder import PipelineFolder
from xgem.peers.loading import load_pipeline
from xgem.peers.locate import locate_peer
from xgem.peers.pipeline import FIXED
from xgem.types import ConfigError

Pipelines = Callable[[str], Path]


def opened(folder: Path) -> Family:
    location = locate_peer(f"diffusers:{folder}")
    pipe = load_pipeline(location, device="cpu", dtype=torch.float32)
    return family_of(location.folder)(pipe, location.folder)


def oracle(family: Family, z: torch.Tensor) -> Callable[..., tuple[torch.Tensor]]:
    """Stands for a denoiser that knows the latents: from what its pipeline passes it, it returns the target."""
    pipe, side = family.pipe, z.shape[-1] * family.folder.scale

    def forward(*arguments: Any, **named: Any) -> tuple[torch.Tensor]:
        noisy = named["hidden_states"] if "hidden_states" in named else named.get("sample", *arguments[:1])
        time = named.get("timestep", arguments[1] if len(arguments) > 1 else None)
        if isinstance(family, Flux):
            noisy = pipe._unpack_latents(noisy, side, side, family.folder.scale)
        time = torch.as_tensor(time).reshape(-1).expand(len(noisy))
        a, s = (one.reshape(-1, 1, 1, 1).float() for one in family.coefficients(time))
        target = family.target(z, (noisy - a * z) / s, a, s)
        if isinstance(family, Flux):
            return (pipe._pack_latents(target, *target.shape),)
        channels = pipe.components[family.folder.denoiser].config.out_channels
        return (torch.cat([target, torch.randn(target.shape)], 1) if channels == 2 * target.shape[1] else target,)

    return forward


@pytest.mark.parametrize("name", MAKE)
def test_a_pipeline_recovers_images_from_the_target(pipelines: Pipelines, name: str) -> None:
    family = opened(pipelines(name))
    side = 16 if name == "flux" else family.folder.size
    z = torch.randn(1, *family.latent_shape(side), generator=torch.Generator().manual_seed(1))
    denoiser: Any = family.denoiser
    denoiser.forward = oracle(family, z)
    options: dict[str, Any] = {key: value for key, value in FIXED.items() if key in family.folder.defaults}
    found = family.pipe(
        prompt=["a"], height=side, width=side, num_inference_steps=4, output_type="latent",
        generator=torch.Generator().manual_seed(2), **options,
    ).images  # fmt: skip
    wanted = family.pipe._pack_latents(z, *z.shape) if isinstance(family, Flux) else z
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0.01)


@pytest.mark.parametrize("name", MAKE)
def test_denoisers_are_called_as_their_pipelines_call_them(pipelines: Pipelines, name: str) -> None:
    """The prediction at the pipeline's first step equals the family's, for the same latents and prompt."""
    family = opened(pipelines(name))
    side = 16 if name == "flux" else family.folder.size
    calls: list[dict[str, Any]] = []
    denoiser: Any = family.denoiser
    real = denoiser.forward

    def recording(*arguments: Any, **named: Any) -> Any:
        made = real(*arguments, **named)
        calls.append(
            {
                "z": named.get("hidden_states", named.get("sample", *arguments[:1])),
                "t": named.get("timestep"),
                "made": made[0],
            }
        )
        if calls[-1]["t"] is None:
            calls[-1]["t"] = arguments[1]
        return made

    denoiser.forward = recording
    options: dict[str, Any] = {key: value for key, value in FIXED.items() if key in family.folder.defaults}
    options["guidance_scale"] = family.guidance  # no guidance, but what Flux's embedding is told
    family.pipe(
        prompt=["Effusion."], height=side, width=side, num_inference_steps=1, output_type="latent",
        generator=torch.Generator().manual_seed(2), **options,
    )  # fmt: skip
    denoiser.forward = real
    first = calls[0]
    z, made = first["z"], first["made"]
    if isinstance(family, Flux):
        z, made = (family.pipe._unpack_latents(one, side, side, family.folder.scale) for one in (z, made))
    with torch.no_grad():
        own = family.predict(
            lambda **named: denoiser(**named, return_dict=False)[0],
            z,
            torch.as_tensor(first["t"]).reshape(-1).expand(len(z)),
            family.encode(["Effusion."]),
        )
    torch.testing.assert_close(own, made[:, : z.shape[1]], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_noise_and_targets_of_denoising_are_diffusers(pipelines: Pipelines, prediction: str) -> None:
    family = opened(pipelines("stable-diffusion"))
    assert isinstance(family, Denoising)
    family.kind = prediction
    scheduler: Any = DDPMScheduler.from_config(family.pipe.scheduler.config)
    z, noise = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    time = family.time(torch.tensor([0.0, 0.5, 0.9999]))
    assert time.tolist() == [0, 500, 999]
    noisy, target = family.noisy(z, noise, time)
    torch.testing.assert_close(noisy, scheduler.add_noise(z, noise, time))
    wanted = {"epsilon": noise, "v_prediction": scheduler.get_velocity(z, noise, time), "sample": z}[prediction]
    torch.testing.assert_close(target, wanted)


def test_noise_of_flow_matching_is_diffusers(pipelines: Pipelines) -> None:
    family = opened(pipelines("stable-diffusion-3"))
    assert isinstance(family, Flow)
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(family.pipe.scheduler.config)
    z, noise = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    time = scheduler.timesteps[[100, 900]]
    noisy, target = family.noisy(z, noise, time)
    torch.testing.assert_close(noisy, scheduler.scale_noise(z, time, noise))
    torch.testing.assert_close(target, noise - z)


def test_times_of_flow_matching_are_logit_normal_and_shifted(pipelines: Pipelines) -> None:
    u = (torch.arange(20_000) + 0.5) / 20_000
    family = opened(pipelines("stable-diffusion-3"))
    assert isinstance(family, Flow)
    s = family.time(u).double() / 1000
    assert family.shift == 3
    back = s / (3 - 2 * s)  # without the shift
    logits = torch.logit(back)
    assert float(logits.mean()) == pytest.approx(0, abs=1e-3)
    assert float(logits.std()) == pytest.approx(1, abs=2e-3)
    lumina, flux = opened(pipelines("lumina-2")), opened(pipelines("flux"))
    assert isinstance(lumina, Lumina2)
    assert float(lumina.time(u).mean()) < 0.3  # its time is 1 where there is no noise
    assert float(flux.time(u).mean()) == pytest.approx(0.5, abs=1e-3)  # a shift by resolution is of sampling
    assert torch.isfinite(family.time(torch.tensor([0.0, 1.0]))).all()


def test_latents_have_the_scale_that_the_pipeline_decodes(pipelines: Pipelines) -> None:
    family = opened(pipelines("stable-diffusion-3"))
    images = torch.rand(2, 3, 16, 16) * 2 - 1
    with torch.no_grad():
        plain = family.pipe.vae.encode(images).latent_dist
        z = family.latents(images, torch.zeros(2, 4, 8, 8))
        drawn = family.latents(images, torch.ones(2, 4, 8, 8))
    torch.testing.assert_close(z / 1.5 + 0.1, plain.mean)
    torch.testing.assert_close(drawn - z, plain.std * 1.5)


def test_resolutions_that_do_not_divide(pipelines: Pipelines) -> None:
    with pytest.raises(ConfigError, match="resolution 18: expected a multiple of 4 for a StableDiffusion3Pipeline"):
        opened(pipelines("stable-diffusion-3")).latent_shape(18)


def test_families_that_are_not_trained(pipelines: Pipelines) -> None:
    folder = PipelineFolder(pipelines("stable-diffusion"))
    folder.kind = type("WuerstchenPipeline", (), {})
    with pytest.raises(ConfigError, match=f"a WuerstchenPipeline cannot be trained here, only: {', '.join(FAMILIES)}"):
        family_of(folder)
