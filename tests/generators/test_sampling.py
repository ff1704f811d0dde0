"""Our guided sampling against diffusers' own pipeline maths, written out: two calls, guidance, a scheduler's step."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from diffusers.models.attention_processor import Attention, AttnProcessor
from torch import Tensor

from xgem.convert.random_init import random_component
from xgem.generators.context_cache import ContextCachingProcessor, TimeEmbedding, reused_context
from xgem.generators.latent_diffusion import LatentDiffusion
from xgem.generators.sampling import SAMPLERS, Output, guided, make_scheduler, sample, sample_together
from xgem.types import Context, Encoded, InputError

B, STEPS = 2, 6
CASES = [
    (name, prediction, context)
    for name in ("frontal", "report")
    for prediction in ("epsilon", "v_prediction")
    for context in ("tokens", "pooled")
]


def model_of(preset: Any, name: str, prediction: str = "v_prediction", context: str = "tokens") -> LatentDiffusion:
    settings = preset.components[name]
    diffusion = settings.diffusion.model_copy(update={"prediction_type": prediction})
    torch.manual_seed(1)
    model: Any = random_component(settings.model_copy(update={"context": context, "diffusion": diffusion}))
    return model


def context_of(model: LatentDiffusion) -> Context:
    """Two prompts of made-up tokens, some of them hidden, some prompts dropped."""
    draw = torch.Generator().manual_seed(5)
    encoded = {}
    for name in model.config.prompts:
        mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
        pooled = torch.nn.functional.normalize(torch.randn(B, 32, generator=draw), dim=-1)
        encoded[name] = Encoded(pooled, torch.randn(B, 5, 32, generator=draw), mask)
    keep = {name: torch.tensor([True, i == 0]) for i, name in enumerate(encoded)}
    with torch.no_grad():
        return model.fuse(encoded, keep)


def noise_of(model: LatentDiffusion) -> Tensor:
    return torch.randn(B, *model.latent_shape, generator=torch.Generator().manual_seed(7))


def plain(model: LatentDiffusion) -> LatentDiffusion:
    """A copy whose attention is diffusers' own, softmax written out."""
    other = copy.deepcopy(model)
    for module in other.modules():
        if isinstance(module, Attention):
            module.set_processor(AttnProcessor())
    return other


def stable_diffusion_scheduler(kind: Any, prediction: str, **options: Any) -> Any:
    """As Stable Diffusion's scheduler_config.json sets it."""
    return kind(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=prediction,
        **options,
    )


@torch.no_grad()
def reference(
    model: LatentDiffusion, context: Context, noise: Tensor, scale: float, scheduler: Any, steps: int = STEPS
) -> Tensor:
    """diffusers' pipelines, spelled out: an unconditional and a conditional call a step, nothing kept between steps."""
    scheduler.set_timesteps(steps)
    z = noise * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        scaled = scheduler.scale_model_input(z, t)
        conditional = model(scaled, t.expand(B), context)
        unconditional = model(scaled, t.expand(B), model.null(B))
        predicted = unconditional + scale * (conditional - unconditional)
        z = scheduler.step(predicted, t, z).prev_sample
    return z


@pytest.mark.parametrize(("name", "prediction", "context"), CASES, ids=lambda value: value)
def test_guided_ddim_is_diffusers(debug_preset: Any, name: str, prediction: str, context: str) -> None:
    model = model_of(debug_preset, name, prediction, context)
    fused, noise = context_of(model), noise_of(model)
    ddim = stable_diffusion_scheduler(DDIMScheduler, prediction, clip_sample=False, timestep_spacing="trailing")
    steps = 8  # divides 1000: otherwise diffusers' DDIM goes to another noise level than its next step starts from
    expected = reference(plain(model), fused, noise, 2.5, ddim, steps)
    ours = sample(model, fused, noise, num_inference_steps=steps, guidance_scale=2.5, sampler="ddim")
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    assert float((ours - noise).abs().max()) > 0.1


@pytest.mark.parametrize(
    ("sampler", "kind", "options"),
    [
        (
            "dpmsolver++",
            DPMSolverMultistepScheduler,
            {"algorithm_type": "dpmsolver++", "solver_order": 2, "use_karras_sigmas": True},
        ),
        ("unipc", UniPCMultistepScheduler, {}),
    ],
)
def test_the_other_samplers_are_diffusers(debug_preset: Any, sampler: str, kind: Any, options: dict[str, Any]) -> None:
    model = model_of(debug_preset, "frontal")
    fused, noise = context_of(model), noise_of(model)
    expected = reference(plain(model), fused, noise, 2.0, stable_diffusion_scheduler(kind, "v_prediction", **options))
    ours = sample(model, fused, noise, num_inference_steps=STEPS, guidance_scale=2.0, sampler=sampler)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["frontal", "report"])
def test_guidance_one_is_conditional_and_zero_unconditional(debug_preset: Any, name: str) -> None:
    model = model_of(debug_preset, name)
    fused, z, t = context_of(model), noise_of(model), torch.tensor(600)
    with torch.no_grad():
        conditional, null = (model(z, t.expand(B), context) for context in (fused, model.null(B)))
        torch.testing.assert_close(guided(model, fused, 1.0)(z, t), conditional)
        torch.testing.assert_close(guided(model, fused, 1.0 + 1e-7)(z, t), conditional)  # by way of the batched call
        torch.testing.assert_close(guided(model, fused, 0.0)(z, t), null)
        torch.testing.assert_close(guided(model, fused, 3.0)(z, t), null + 3 * (conditional - null))
    options: dict[str, Any] = {"num_inference_steps": 3, "sampler": "ddim"}
    torch.testing.assert_close(
        sample(model, fused, z, guidance_scale=0.0, **options),
        sample(model, model.null(B), z, guidance_scale=1.0, **options),
    )


@pytest.mark.parametrize("name", ["frontal", "report"])
def test_rescaled_guidance_has_the_deviation_of_the_conditional_prediction(debug_preset: Any, name: str) -> None:
    model = model_of(debug_preset, name)
    fused, z, t = context_of(model), noise_of(model), torch.tensor(600)
    with torch.no_grad():
        conditional = model(z, t.expand(B), fused)
        plain, half, full = (guided(model, fused, 4.0, rescale)(z, t) for rescale in (0.0, 0.5, 1.0))

    def deviation(x: Tensor) -> Tensor:
        return x.flatten(1).std(dim=1)

    assert not torch.allclose(deviation(plain), deviation(conditional), rtol=1e-3)
    torch.testing.assert_close(deviation(full), deviation(conditional))
    torch.testing.assert_close(half, (plain + full) / 2)


def test_guidance_may_be_on_in_a_part_of_the_steps_alone(debug_preset: Any) -> None:
    model = model_of(debug_preset, "frontal")
    sizes: list[int] = []
    model.net.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    output = Output(model, context_of(model), noise_of(model), 2.0, guidance_start=0.25, guidance_end=0.75)
    made = sample_together({"frontal": output}, num_inference_steps=4)["frontal"]
    assert sizes == [B, 2 * B, 2 * B, B]
    for scale, start, end in ((1.0, 0.25, 0.75), (2.0, 0.0, 1.0)):
        other = Output(model, output.context, output.noise, scale, guidance_start=start, guidance_end=end)
        assert not torch.allclose(made, sample_together({"frontal": other}, num_inference_steps=4)["frontal"])
    never = Output(model, output.context, output.noise, 2.0, guidance_end=0.0)
    plain = sample(model, output.context, output.noise, num_inference_steps=4, guidance_scale=1.0)
    torch.testing.assert_close(sample_together({"frontal": never}, num_inference_steps=4)["frontal"], plain)


@pytest.mark.parametrize("name", ["frontal", "report"])
def test_guidance_is_one_batched_call_a_step(debug_preset: Any, name: str) -> None:
    model = model_of(debug_preset, name)
    sizes: list[int] = []
    model.net.register_forward_pre_hook(lambda _, arguments: sizes.append(len(arguments[0])))
    sample(model, context_of(model), noise_of(model), num_inference_steps=4, guidance_scale=2.0)
    assert sizes == [2 * B] * 4


@pytest.mark.parametrize("name", ["frontal", "report"])
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_contexts_are_projected_once_and_nothing_else_changes(debug_preset: Any, name: str, scale: float) -> None:
    model = model_of(debug_preset, name)
    fused, noise = context_of(model), noise_of(model)
    processors: list[Any] = [module.processor for module in model.modules() if isinstance(module, Attention)]
    assert all(isinstance(processor, ContextCachingProcessor) for processor in processors)
    calls: list[str] = []
    cross: list[Any] = [module for key, module in model.named_modules() if key.endswith("attn2")]
    for attention in cross:
        attention.to_k.register_forward_hook(lambda *_: calls.append("k"))
    embedded: list[int] = []
    (times,) = (module for module in model.modules() if isinstance(module, TimeEmbedding))
    times.linear_1.register_forward_hook(lambda _, inputs, __: embedded.append(len(inputs[0])))
    with_reuse = sample(model, fused, noise, num_inference_steps=STEPS, guidance_scale=scale, sampler="ddim")
    assert len(calls) == len(cross)
    assert all(not processor.enabled and processor._kept is None for processor in processors)  # nothing is kept after
    assert embedded == [STEPS]  # all steps in one call

    denoise = guided(model, fused, scale)

    def without_reuse(table: bool) -> Tensor:
        scheduler, z = make_scheduler("ddim", model.config.diffusion), noise
        scheduler.set_timesteps(STEPS)
        calls.clear()
        with torch.no_grad():
            times.prepare(scheduler.timesteps if table else None)
            for step, t in enumerate(scheduler.timesteps):
                if table:
                    times.at(step)
                z = scheduler.step(denoise(z, t), t, z).prev_sample
            times.prepare(None)
        assert len(calls) == len(cross) * STEPS
        return z

    torch.testing.assert_close(with_reuse, without_reuse(table=True), rtol=0, atol=0)
    # Embedded step by step, only the rounding differs: a matrix product's follows its size.
    torch.testing.assert_close(with_reuse, without_reuse(table=False), rtol=1e-5, atol=1e-6)


def test_another_context_is_not_taken_for_the_kept_one(debug_preset: Any) -> None:
    model = model_of(debug_preset, "frontal")
    fused, z, t = context_of(model), noise_of(model), torch.tensor([500, 500])
    with torch.no_grad():
        expected = [model(z, t, context) for context in (fused, model.null(B))]
        with reused_context(model, t[:1]):
            made = [model(z, t, context) for context in (fused, model.null(B), fused, fused)]
    for one, index in zip(made, (0, 1, 0, 0), strict=True):
        torch.testing.assert_close(one, expected[index])


def test_nothing_is_kept_while_gradients_are_wanted(debug_preset: Any) -> None:
    model = model_of(debug_preset, "frontal")
    fused, z, t = context_of(model), noise_of(model), torch.tensor([500, 500])
    gradients = []
    with reused_context(model, t[:1]):
        for _ in range(2):  # a kept graph would be gone the second time
            model.zero_grad()
            model(z, t, fused).sum().backward()
            gradients.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    for module in model.modules():
        if isinstance(module, Attention):
            assert module.processor._kept is None  # type: ignore[union-attr]
    assert any(name.endswith("attn2.to_k.weight") and bool(grad.any()) for name, grad in gradients[0].items())
    torch.testing.assert_close(gradients[1], gradients[0])


def test_an_error_leaves_nothing_kept(debug_preset: Any) -> None:
    model = model_of(debug_preset, "frontal")

    def stop(step: int, timestep: int, latents: Tensor) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sample(model, context_of(model), noise_of(model), num_inference_steps=2, guidance_scale=1.0, callback=stop)
    for module in model.modules():
        if isinstance(module, Attention):
            assert not module.processor.enabled  # type: ignore[union-attr]
        if isinstance(module, TimeEmbedding):
            assert module._table is None


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_same_noise_same_latents(debug_preset: Any, sampler: str) -> None:
    model = model_of(debug_preset, "report")
    fused, noise = context_of(model), noise_of(model)
    options: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 2.0, "sampler": sampler}
    options["step_noise"] = lambda step: noise.flip(0) * (-1) ** step
    one, again = (sample(model, fused, noise, **options) for _ in range(2))
    assert torch.equal(one, again)
    assert torch.isfinite(one).all()
    assert not torch.equal(one, sample(model, fused, noise + 0.1, **options))


def test_the_callback_sees_every_step(debug_preset: Any) -> None:
    model = model_of(debug_preset, "report")
    seen: list[tuple[int, int, Tensor]] = []
    made = sample(
        model,
        context_of(model),
        noise_of(model),
        num_inference_steps=4,
        guidance_scale=1.0,
        callback=lambda step, t, z: seen.append((step, t, z.clone())),
    )
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert [t for _, t, _ in seen] == sorted((t for _, t, _ in seen), reverse=True)
    assert torch.equal(seen[-1][2], made)


def test_a_stochastic_sampler_takes_its_noise_from_the_caller(debug_preset: Any) -> None:
    model = model_of(debug_preset, "frontal")
    fused, noise = context_of(model), noise_of(model)
    options: dict[str, Any] = {"num_inference_steps": STEPS, "guidance_scale": 2.0, "sampler": "sde-dpmsolver++"}
    with pytest.raises(InputError, match="expected step_noise, got none"):
        sample(model, fused, noise, **options)
    drawn = [noise_of(model).roll(step, 1) for step in range(STEPS)]
    made = sample(model, fused, noise, **options, step_noise=drawn.__getitem__)

    scheduler = make_scheduler("sde-dpmsolver++", model.config.diffusion)
    scheduler.set_timesteps(STEPS)
    z, denoise = noise * scheduler.init_noise_sigma, guided(plain(model), fused, 2.0)
    with torch.no_grad():
        for step, t in enumerate(scheduler.timesteps):
            z = scheduler.step(denoise(z, t), t, z, variance_noise=drawn[step]).prev_sample
    torch.testing.assert_close(made, z, rtol=1e-4, atol=1e-5)
    other = sample(model, fused, noise, **options, step_noise=lambda step: -drawn[step])
    assert float((made - other).abs().max()) > 0.1


def test_an_unknown_sampler_lists_the_known_ones(debug_preset: Any) -> None:
    model = model_of(debug_preset, "report")
    with pytest.raises(InputError, match=r"'euler': expected one of dpmsolver\+\+, sde-dpmsolver\+\+, ddim, unipc"):
        make_scheduler("euler", model.config.diffusion)
