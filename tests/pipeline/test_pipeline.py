"""The pipeline on a tiny checkpoint of random weights: what decides a sample, and what may not."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image

import xgem
from tests.pipeline.conftest import EFFUSION, NORMAL, QUICK, pixels, radiograph, same
from xgem.generators.sampling import sample
from xgem.modalities import get_modality
from xgem.pipeline.generation import Generation
from xgem.pipeline.pipeline import XgemPipeline
from xgem.types import Context, InputError
from xgem.utils.random import derived_seed, sample_noise

# --------------------------------------------------------------------------------------------------- shapes


def test_smoke_all_three_outputs_from_nothing(pipeline: XgemPipeline) -> None:
    made = pipeline({}, ["frontal", "lateral", "report"], seed=3, num_samples=2, **QUICK)
    assert isinstance(made, Generation)
    assert list(made) == ["frontal", "lateral", "report"]
    size = pipeline.preset.transform.size
    for image in [*made.frontal, *made.lateral]:
        assert isinstance(image, Image.Image)
        assert (image.mode, image.size) == ("L", (size, size))
    assert [type(text) for text in made.report] == [str, str]
    with pytest.raises(AttributeError, match="has no output 'mask', only: frontal, lateral, report"):
        _ = made.mask


@pytest.mark.parametrize("output_type", ["pil", "np", "pt"])
def test_output_types_show_the_same_image(pipeline: XgemPipeline, output_type: str) -> None:
    made = pipeline({"report": NORMAL}, "frontal", seed=3, output_type=output_type, **QUICK).frontal[0]
    size = pipeline.preset.transform.size
    shapes = {"pil": (size, size), "np": (size, size), "pt": (1, size, size)}
    values = pixels(made) if output_type == "pil" else np.asarray(made)
    assert values.shape == shapes[output_type]
    assert values.min() >= 0
    assert values.max() <= 1
    reference = pixels(pipeline({"report": NORMAL}, "frontal", seed=3, **QUICK).frontal[0])
    np.testing.assert_allclose(values.reshape(size, size), reference, atol=0.5 / 255 + 1e-6)


def test_a_batch_gives_a_list(pipeline: XgemPipeline) -> None:
    made = pipeline([{"report": NORMAL}, {"frontal": radiograph()}], "lateral", seed=1, **QUICK)
    assert [list(one) for one in made] == [["lateral"], ["lateral"]]
    assert [list(one.metadata["inputs"]) for one in made] == [["report"], ["frontal"]]
    assert isinstance(pipeline([{}], "lateral", seed=1, **QUICK), list)


# --------------------------------------------------------------------------------- what decides a sample


def test_the_seed_decides(pipeline: XgemPipeline) -> None:
    first, again, other = (pipeline({"report": NORMAL}, "frontal", seed=s, **QUICK).frontal[0] for s in (1, 1, 2))
    assert same(first, again)
    assert not same(first, other)


@torch.inference_mode()
def step_by_step(pipeline: XgemPipeline, inputs: dict[str, Any], seed: int, **options: Any) -> Image.Image:
    """A frontal image from the components alone: encode, fuse, sample, decode."""
    preset, encoded = pipeline.preset, {}
    for name, value in inputs.items():
        encoder: Any = pipeline.component(preset.encoder(name))
        encoded[name] = encoder.encode(get_modality(name).collate([get_modality(name).read(value, preset).value]))
    model: Any = pipeline.component(preset.generator("frontal"))
    noise = sample_noise(seed, "frontal", 0, model.latent_shape)[None]
    z = sample(model, model.fuse(encoded) if encoded else model.null(1), noise, **options)
    codec: Any = pipeline.component(preset.codec("frontal"))
    return get_modality("frontal").to_output(codec.decode(z), "pil")[0]


@pytest.mark.parametrize(
    "change",
    [{}, {"num_inference_steps": 3}, {"guidance_scale": 7.0}, {"sampler": "ddim"}],
    ids=lambda c: next(iter(c), "preset's"),
)
def test_sampling_options_reach_the_sample(pipeline: XgemPipeline, change: dict[str, Any]) -> None:
    made = pipeline({"report": NORMAL}, "frontal", seed=1, **{**QUICK, **change}).frontal[0]
    presets = pipeline.preset.sampling
    options = {
        "num_inference_steps": 2,
        "guidance_scale": presets.guidance_scale["frontal"],
        "sampler": presets.sampler,
    }
    assert same(made, step_by_step(pipeline, {"report": NORMAL}, 1, **{**options, **change}))
    if change:
        assert not same(made, step_by_step(pipeline, {"report": NORMAL}, 1, **options))


@pytest.mark.parametrize(
    "inputs", [{}, {"report": EFFUSION}, {"lateral": radiograph(5)}, {"report": NORMAL, "lateral": radiograph(5)}]
)
def test_the_inputs_reach_the_sample(pipeline: XgemPipeline, inputs: dict[str, Any]) -> None:
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0, "sampler": "dpmsolver++"}
    made = pipeline(inputs, "frontal", seed=1, progress=False, **options).frontal[0]
    assert same(made, step_by_step(pipeline, inputs, 1, **options))
    assert not same(made, step_by_step(pipeline, {"report": NORMAL}, 1, **options))


def test_the_order_of_inputs_and_other_outputs_change_nothing(pipeline: XgemPipeline) -> None:
    inputs: dict[str, Any] = {"frontal": radiograph(), "report": NORMAL}
    one = pipeline(inputs, "lateral", seed=1, **QUICK).lateral[0]
    assert same(one, pipeline(dict(reversed(inputs.items())), ["lateral"], seed=1, **QUICK).lateral[0])
    both = pipeline({"frontal": radiograph()}, ["lateral", "report"], seed=1, **QUICK)
    alone = pipeline({"frontal": radiograph()}, ["report"], seed=1, **QUICK)
    assert both.report == alone.report


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_the_batch_changes_no_sample(pipeline: XgemPipeline, batch_size: int) -> None:
    items = [{"report": NORMAL}, {"report": EFFUSION + " " + NORMAL}, {"lateral": radiograph()}]
    options: dict[str, Any] = {**QUICK, "output_type": "np", "num_samples": 2}
    together = pipeline(items, "frontal", seed=[4, 4, 9], batch_size=batch_size, **options)
    for item, seed, made in zip(items, [4, 4, 9], together, strict=True):
        alone = pipeline(item, "frontal", seed=seed, **options)
        for one, other in zip(alone.frontal, made.frontal, strict=True):
            np.testing.assert_allclose(one, other, atol=1e-4)
    assert not np.allclose(together[0].frontal[0], together[0].frontal[1], atol=1e-3)


def test_noise_follows_seed_output_and_index_alone() -> None:
    shape = (4, 8, 8)
    one = sample_noise(1, "frontal", 0, shape)
    assert torch.equal(one, sample_noise(1, "frontal", 0, shape))
    others = [sample_noise(2, "frontal", 0, shape), sample_noise(1, "lateral", 0, shape)]
    others.append(sample_noise(1, "frontal", 1, shape))
    assert not any(torch.equal(one, other) for other in others)
    many = torch.stack([sample_noise(seed, "frontal", 0, shape) for seed in range(200)])
    assert abs(float(many.mean())) < 0.02
    assert abs(float(many.std()) - 1) < 0.02
    assert len({derived_seed(1, "report", k, purpose) for k in range(99) for purpose in ("noise", "decode")}) == 198


def test_a_generator_gives_a_seed_that_is_recorded(pipeline: XgemPipeline) -> None:
    source = torch.Generator().manual_seed(5)
    first = pipeline({}, "report", generator=source, **QUICK)
    second = pipeline({}, "report", generator=source, **QUICK)
    assert first.metadata["seed"] != second.metadata["seed"]
    again = pipeline({}, "report", generator=torch.Generator().manual_seed(5), **QUICK)
    assert again.metadata["seed"] == first.metadata["seed"]
    with pytest.raises(InputError, match="both given"):
        pipeline({}, "report", generator=source, seed=1, **QUICK)
    with pytest.raises(InputError, match=r"expected torch\.Generator"):
        pipeline({}, "report", generator=np.random.default_rng(0), **QUICK)  # type: ignore[call-overload]


def test_drawn_reports_are_seeded_and_independent_of_the_batch(pipeline: XgemPipeline) -> None:
    options: dict[str, Any] = {**QUICK, "greedy": False, "num_samples": 3, "seed": 2}
    made = pipeline({"frontal": radiograph()}, "report", **options)
    assert made.report == pipeline({"frontal": radiograph()}, "report", batch_size=1, **options).report
    assert (
        made.report
        != pipeline({"frontal": radiograph()}, "report", **cast(dict[str, Any], {**options, "seed": 3})).report
    )


def test_the_global_random_state_decides_nothing_and_stays(pipeline: XgemPipeline) -> None:
    torch.manual_seed(1)
    one = pipeline({}, "frontal", seed=1, **QUICK).frontal[0]
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert same(one, pipeline({}, "frontal", seed=1, **QUICK).frontal[0])
    assert torch.equal(before, torch.get_rng_state())


def test_callback_sees_every_step(pipeline: XgemPipeline) -> None:
    seen: list[tuple[str, int, int, tuple[int, ...]]] = []

    def look(pipe: XgemPipeline, step: int, timestep: int, values: dict[str, Any]) -> None:
        assert pipe is pipeline
        seen.append((values["output"], step, timestep, tuple(values["latents"].shape)))

    options: dict[str, Any] = {"seed": 1, "num_inference_steps": 3, "progress": False, "callback_on_step_end": look}
    pipeline({}, ["frontal", "report"], **options)
    assert [(name, step) for name, step, _, _ in seen] == [(n, s) for s in range(3) for n in ("frontal", "report")]
    pipeline({}, ["frontal", "report"], joint=False, **options)
    alone = [(n, s) for n in ("frontal", "report") for s in range(3)]
    assert [(name, step) for name, step, _, _ in seen[6:]] == alone
    assert all(shape[0] == 1 for *_, shape in seen)
    times = [timestep for name, _, timestep, _ in seen[6:] if name == "frontal"]
    assert times == sorted(times, reverse=True)


# ---------------------------------------------------------------------------------------------------- input


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"report": ""}, "report"),
        ({"report": " \n\t"}, "report"),
        ({"report": 5}, "report"),
        ({"frontal": "no-such-file.png"}, "no-such-file.png"),
        ({"frontal": np.zeros((64, 64), dtype=np.float32)}, "constant"),
        ({"frontal": radiograph() * 3}, "range|between|0, 1"),
        ({"frontal": radiograph()[:16, :16]}, "32"),
        ({"frontal": np.full((64, 64), np.nan, dtype=np.float32)}, "(?i)nan|infinite|finite"),
    ],
)
def test_bad_inputs_are_one_line(pipeline: XgemPipeline, inputs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        pipeline(inputs, "lateral", seed=1, **QUICK)
    assert "\n" not in str(raised.value)


def test_a_report_that_is_too_long_is_flagged(pipeline: XgemPipeline, caplog: pytest.LogCaptureFixture) -> None:
    long = "Heart size is normal. " * 200
    made = pipeline({"report": long}, "frontal", seed=1, **QUICK)
    assert made.metadata["inputs"]["report"]["truncated"] is True
    assert any("truncated" in note for note in made.metadata["inputs"]["report"]["notes"])
    assert "truncated" in caplog.text
    short = pipeline({"report": NORMAL}, "frontal", seed=1, **QUICK)
    assert "truncated" not in short.metadata["inputs"]["report"]


def test_the_last_bad_input_of_a_batch_stops_all(pipeline: XgemPipeline) -> None:
    steps: list[int] = []
    with pytest.raises(InputError):
        pipeline(
            [{"report": NORMAL}, {"report": ""}],
            "frontal",
            progress=False,
            callback_on_step_end=lambda _pipe, step, _time, _values: steps.append(step),
        )
    assert not steps


# -------------------------------------------------------------------------------------------------- the API


def test_generate_keeps_the_model(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = xgem.generate({"report": NORMAL}, "frontal", model=checkpoint, device="cpu", seed=1, **QUICK)
    monkeypatch.setattr("xgem.checkpoints.store.load_component", lambda *_, **__: pytest.fail("read again"))
    two = xgem.generate({"report": NORMAL}, "frontal", model=str(checkpoint), device="cpu", seed=1, **QUICK)
    assert same(one.frontal[0], two.frontal[0])


def test_load_gives_a_pipeline_that_generate_takes(checkpoint: Path) -> None:
    pipe = xgem.load(checkpoint)
    assert isinstance(pipe, xgem.XgemPipeline)
    assert list(xgem.generate({}, "report", model=pipe, seed=1, **QUICK)) == ["report"]


def test_contexts_are_padded_and_masked_to_one_width() -> None:
    from xgem.encoders.fusion import stack

    def context(length: int) -> Context:
        return Context(torch.ones(1, length, 3), torch.ones(1, length, dtype=torch.bool), torch.ones(1, 2))

    stacked = stack([context(2), context(4)], 5)
    assert stacked.tokens.shape == (2, 5, 3)
    assert stacked.mask.tolist() == [[True] * 2 + [False] * 3, [True] * 4 + [False]]
    assert not stacked.tokens[0, 2:].any()


def test_one_section_of_a_report_on_request(pipeline: XgemPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = "Findings: Lungs are clear. Impression: No acute disease."
    both = pipeline.preset.model_copy(update={"report_sections": ("findings", "impression")})
    monkeypatch.setattr(pipeline, "preset", both)
    monkeypatch.setattr(pipeline.component("report_vae"), "decode", lambda z, **_: [whole] * len(z))
    made = [pipeline({}, "report", report_section=one, **QUICK).report for one in (None, "findings", "impression")]
    assert made == [[whole], ["Lungs are clear."], ["No acute disease."]]
    monkeypatch.undo()
    with pytest.raises(InputError, match="report_section 'findings': preset 'debug' writes impression"):
        pipeline({}, "report", report_section="findings", **QUICK)
