"""Every preset that ships: it builds, its parts fit, and `paper` has the published sizes."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from xgem.cli.info import count_parameters
from xgem.configs.preset import load_preset, preset_names
from xgem.train.initial import architecture
from xgem.train.loop import learning_rate
from xgem.train.stages import stages

BUILDERS: dict[str, Any] = {
    name: builder.func if isinstance(builder, partial) else builder for name, builder in stages().items()
}
"""The class of each stage."""


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


def test_the_published_layout_has_the_published_sizes() -> None:
    """Beside the denoisers, the fusion's projection and null token; V has its own copy of each time embedding."""
    counts, paper = counted("xgem-published"), counted("paper")
    same = ("image_encoder", "text_encoder", "image_vae", "frontal", "lateral")
    assert [counts[name] for name in same] == [paper[name] for name in same]
    assert counts["report"] - (768 * 768 + 768) - 768 == 1_708_848_448
    time = (320 * 1280 + 1280) + (1280 * 1280 + 1280)
    assert counts["alignment"] - 3 * time == 2 * (52_352_800 + 243_947_200) + 95_589_760 + 243_947_200


@pytest.mark.parametrize("name", ["paper", "xgem-published"])
def test_paper_follows_the_published_recipe(name: str) -> None:
    preset = load_preset(name)
    for name in preset.outputs:
        generator: Any = preset.components[preset.generator(name)]
        assert (generator.context, generator.pooled_dim) == ("pooled", 768)
        assert generator.diffusion.prediction_type == "epsilon"
        assert preset.sampling.guidance_scale[name] == 7.5
    assert (preset.sampling.sampler, preset.sampling.num_inference_steps) == ("ddim", 50)
    assert (preset.transform.size, preset.transform.pixel_spacing) == (256, 0.139)
    assert {stage.weight_decay for stage in preset.train.values()} == {1e-4}
    assert (preset.transform.pad, preset.transform.invert_monochrome1, preset.transform.rescale) == (
        True,
        True,
        "header",
    )
    texts = preset.report_sections, preset.prompt_sections, preset.captions
    assert texts == (("impression",), ("impression",), "none")
    # Section 3.2: optimizer, learning rate, batch size, epochs; about 61,500 studies are left to train on
    ldm = ("adamw", 1e-5, 512, 100)
    stated = {
        "clip": ("adam", 5e-5, 1024, 200),
        "report-vae": ("adamw", 5e-5, 256, 100),
        "frontal": ldm,
        "lateral": ldm,
        "report": ("adamw", 1e-5, 1024, 100),
    }
    for name, (optimizer, rate, batch, epochs) in stated.items():
        stage = preset.train[name]
        assert (stage.optimizer, stage.learning_rate, stage.batch_size) == (optimizer, rate, batch)
        assert stage.steps * stage.batch_size / 61_500 == pytest.approx(epochs, rel=0.01)
    for stage in preset.train.values():
        assert [learning_rate(stage, step) for step in (0, stage.steps // 2, stage.steps)] == [stage.learning_rate] * 3


def test_paper_trains_on_no_loss_of_our_own() -> None:
    preset = load_preset("paper")
    weights = {name: BUILDERS[name].loss_weights(name, preset.train[name]) for name in preset.train}
    assert not any(weights["clip"].values())  # Eq. 1 alone
    assert {name: value for name, value in weights["report-vae"].items() if value} == {"kl": 1.0, "free_bits": 0.5}
    for name in preset.outputs:
        assert not any(weights[name].values())  # Eq. 3 alone
    assert weights["joint"] == {"contrastive": 1.0, "temperature": 0.1, "alone": 0, "lowest": 0, "published": 0}


@pytest.mark.parametrize("name", preset_names())
def test_its_stages_know_its_loss_settings(name: str) -> None:
    for stage, config in load_preset(name).train.items():
        assert set(config.loss) <= set(BUILDERS[stage].loss_weights(stage, config))


PUBLISHED = ("paper", "chexgen-xl2-256", "chexgen-xl2-512")


@pytest.mark.parametrize("name", preset_names())
def test_presets_of_papers_say_where_they_differ(name: str) -> None:
    preset = load_preset(name)
    assert bool(preset.deviations) == bool(preset.assumptions) == (name in (*PUBLISHED, "xgem-published"))
    assert all(text.endswith((".", ")")) for text in (*preset.deviations, *preset.assumptions))


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_said_of_a_papers_preset_is_what_it_has(name: str) -> None:
    preset = load_preset(name)
    said = " ".join((*preset.deviations, *preset.assumptions))
    for stage in preset.train.values():
        assert stage.betas == (0.9, 0.999)
        assert stage.decayed == "all"
        assert stage.grad_clip == 1.0
        assert f"{stage.ema_decay:g}" in said
        assert stage.final_lr_fraction == 1.0
        assert f"{stage.warmup_steps:,}" in said if stage.warmup_steps else "without warm-up" in said
    generators: list[Any] = [preset.components[preset.generator(output)] for output in preset.outputs]
    assert {generator.null_probability for generator in generators} == {0.1}
    assert "10 %" in said
    if name == "paper":
        counts = counted(name)
        sizes = {part: counts[part] / 1e6 for part in ("report_vae", "report", "alignment")}
        assert f"{sum(counts.values()) / 1e9:.2f}B" in said
        assert all(f"{size:,.0f}M" in said for size in sizes.values())
    else:
        assert preset.train["control"].loss == {"caption": 0.9, "vary": 0.0}
        assert preset.prefix == "always"


def test_what_differs_is_of_a_preset_and_not_of_one_that_extends_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: paper\nname: mine\n", encoding="utf-8")
    mine = load_preset(tmp_path / "mine.yaml")
    assert mine.train == load_preset("paper").train
    assert mine.deviations == mine.assumptions == ()


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
        assert dit.null_probability == 0.1
        vae: Any = preset.components["image_vae"]
        assert vae.pretrained.startswith("stable-diffusion-v1-5/")
        for stage in preset.train.values():
            settings = stage.learning_rate, stage.weight_decay, stage.grad_clip, stage.ema_decay
            assert settings == (1e-4, 0.01, 1.0, 0.9999)
            assert (stage.optimizer, stage.final_lr_fraction) == ("adamw", 1.0)
    # Extended Data Table 4: samples on each of 32 devices, epochs; Tables 1 and 2: pairs, and annotated cases
    stated = (
        (first.train["frontal"], 192, 800, 959_206),
        (second.train["frontal"], 64, 300, 45_000),
        (second.train["control"], 32, 200, 10_675 + 196 + 3_968 + 4_720 + 1_898),
    )
    for stage, each, epochs, count in stated:
        assert stage.batch_size == 32 * each
        assert stage.steps == round(epochs * count / stage.batch_size)
    assert (first.captions, second.captions) == ("labels", "none")
    assert (first.prompt_sections, second.prompt_sections) == (None, ("impression",))
    assert architecture(first.components["frontal_dit"]) == architecture(second.components["frontal_dit"])
