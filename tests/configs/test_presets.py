"""Every preset that ships: it builds, its parts fit, and `paper` has the published sizes."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest

from xgem.cli.info import count_parameters
from xgem.configs.preset import load_preset, preset_names
from xgem.train.initial import architecture
from xgem.train.stages import stages


@cache
def counted(name: str) -> dict[str, Any]:
    """Parameters by component, built on the meta device."""
    return {key: entry["parameters"] for key, entry in count_parameters(name)["components"].items()}


def test_the_names_are_those_of_the_files() -> None:
    assert {"debug", "openi-256", "paper", "small"} <= set(preset_names())
    assert all(load_preset(name).name == name for name in preset_names())


@pytest.mark.parametrize("name", preset_names())
def test_it_builds(name: str) -> None:
    counts = counted(name)
    assert set(counts) == set(load_preset(name).components)
    assert min(counts.values()) > 0


WHOLE = [name for name in preset_names() if not name.endswith("-tune")]  # what is trained from the beginning
XGEM, CHEXGEN = ([name for name in WHOLE if ("chexgen" in name) == chexgen] for chexgen in (False, True))


@pytest.mark.parametrize("name", XGEM)
def test_it_serves_every_modality_and_trains_every_stage(name: str) -> None:
    preset = load_preset(name)
    assert set(preset.outputs) == {"frontal", "lateral", "report"}
    assert set(preset.sampling.guidance_scale) == set(preset.outputs)
    frozen = {"image-vae", "image-decoder"} if getattr(preset.components["image_vae"], "pretrained", None) else set()
    assert set(preset.train) == set(stages()) - {"control"} - frozen


def test_sizes_grow_from_debug_to_paper() -> None:
    totals = [sum(counted(name).values()) for name in ("debug", "openi-256", "small", "paper")]
    assert totals == sorted(totals)
    assert totals[1] * 2 <= 48e6  # as fp16 the embedded checkpoint stays under 48 MB


def test_paper_has_the_published_sizes() -> None:
    counts = counted("paper")
    assert counts["image_encoder"] + counts["text_encoder"] == pytest.approx(427.6e6, rel=1e-3)  # CLIP ViT-L/14
    assert counts["image_vae"] == pytest.approx(83.65e6, rel=1e-3)  # AutoKL of Stable Diffusion
    # Stable Diffusion's UNet, and beside it what brings the pooled vector in: its projection into the time embedding
    # (768 -> 1280 -> 1280), the projection to the one context token, the null token.
    added = (768 * 1280 + 1280) + (1280 * 1280 + 1280) + (768 * 768 + 768) + 768
    for name in ("frontal", "lateral"):
        assert counts[name] - added == 859_520_964


def test_paper_follows_the_published_recipe() -> None:
    preset = load_preset("paper")
    for name in preset.outputs:
        generator: Any = preset.components[preset.generator(name)]
        assert (generator.context, generator.pooled_dim) == ("pooled", 768)
        assert generator.diffusion.prediction_type == "epsilon"
        assert preset.sampling.guidance_scale[name] == 7.5
    assert (preset.sampling.sampler, preset.sampling.num_inference_steps) == ("ddim", 50)
    assert (preset.transform.size, preset.transform.pixel_spacing) == (256, 0.139)
    assert {stage.weight_decay for stage in preset.train.values()} == {1e-4}


@pytest.mark.parametrize("name", [name for name in CHEXGEN if not name.endswith("clip")])
def test_a_chexgen_preset_makes_frontals_from_text(name: str) -> None:
    preset = load_preset(name)
    assert preset.outputs == ("frontal",)
    assert set(preset.inputs("frontal")) >= {"report", "demographics", "severity"}
    assert set(preset.train) <= {"frontal", "control"}
    assert set(preset.sampling.guidance_scale) == {"frontal"}


def test_its_text_encoder_goes_on_from_the_default_and_into_every_stage() -> None:
    first, *later = (load_preset(name) for name in ("chexgen-small-clip", "chexgen-small-128", "chexgen-small"))
    assert set(first.train) == {"clip"}
    for name, config in first.components.items():
        assert architecture(config) == architecture(load_preset("openi-256").components[name])
    assert all(preset.components["text_encoder"] == first.components["text_encoder"] for preset in later)


def test_the_embedded_transformer_is_small() -> None:
    assert sum(counted("chexgen-small").values()) * 2 <= 24e6


def test_chexgen_has_the_published_size() -> None:
    """DiT-XL/2 with both output halves, the caption MLP and the null caption: 611M; T5 v1.1-XXL's encoder: 4.76B."""
    for name in ("chexgen-xl2-256", "chexgen-xl2-512"):
        counts = counted(name)
        assert counts["frontal_dit"] == 611_347_616
        assert counts["t5"] == 4_762_310_656
        assert counts["image_vae"] == 83_653_863
    larger = [f"{part}.{setting}" for part in ("frontal_dit", "control") for setting in ("width=2048", "heads=32")]
    wide = count_parameters("chexgen-xl2-512", larger)  # the paper's text
    assert wide["components"]["frontal_dit"]["parameters"] == 1_923_221_536


def test_chexgen_follows_the_published_recipe() -> None:
    first, second = load_preset("chexgen-xl2-256"), load_preset("chexgen-xl2-512")
    for preset, side, scale in ((first, 32, 1.0), (second, 64, 2.0)):
        dit: Any = preset.components["frontal_dit"]
        assert (dit.latent_shape, dit.position_scale, dit.patch_size) == ((4, side, side), scale, 2)
        assert (dit.depth, dit.width, dit.heads, dit.caption_tokens, dit.context_dim) == (28, 1152, 16, 120, 4096)
        assert dit.learned_sigma
        forward = dit.diffusion
        assert (forward.beta_schedule, forward.beta_start, forward.beta_end) == ("linear", 1e-4, 0.02)
        assert (forward.num_train_timesteps, forward.prediction_type) == (1000, "epsilon")
        assert (preset.sampling.sampler, preset.sampling.num_inference_steps) == ("ddim", 100)
        assert preset.sampling.guidance_scale == {"frontal": 4.0}
        stage = preset.train["frontal"]
        assert (stage.learning_rate, stage.weight_decay, stage.grad_clip, stage.ema_decay) == (1e-4, 0.01, 1.0, 0.9999)
    assert (first.prompt_sections, second.prompt_sections) == (None, ("impression",))
    assert architecture(first.components["frontal_dit"]) == architecture(second.components["frontal_dit"])
