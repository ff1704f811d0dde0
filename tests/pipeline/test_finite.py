"""What is not finite is never returned or saved: one line says which output, and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from tests.pipeline.conftest import NORMAL, QUICK
from xgem.cli import main
from xgem.pipeline.options import MAX_GUIDANCE_SCALE, CallOptions
from xgem.pipeline.pipeline import XgemPipeline
from xgem.types import InputError, SamplingError


@contextmanager
def damaged(pipeline: XgemPipeline, component: str, value: float) -> Iterator[None]:
    """The last weight of a component set to ``value``."""
    weight = [weight for weight in pipeline.component(component).parameters() if weight.ndim > 1][-1]
    with torch.inference_mode():
        before = weight.clone()
        weight.fill_(value)
    try:
        yield
    finally:
        with torch.inference_mode():
            weight.copy_(before)


@pytest.mark.parametrize("output", ["frontal", "lateral", "report"])
def test_a_damaged_weight_gives_no_sample(pipeline: XgemPipeline, output: str) -> None:
    name = pipeline.preset.generator(output)
    with damaged(pipeline, name, float("nan")), pytest.raises(SamplingError) as raised:
        pipeline({}, output, seed=1, num_samples=2, **QUICK)
    expected = f"{output}: the sampled latents of 2 of 2 samples are not finite (NaN); the weights of {name!r} or of a "
    assert str(raised.value).startswith(expected)
    assert pipeline({}, output, seed=1, **QUICK).outputs[output]


def test_a_damaged_codec_gives_no_image(pipeline: XgemPipeline) -> None:
    codec = pipeline.preset.codec("frontal")
    message = "frontal: the decoded images of 1 of 1 samples are not finite"
    with damaged(pipeline, codec, float("nan")), pytest.raises(SamplingError, match=message):
        pipeline({}, "frontal", seed=1, **QUICK)


def test_large_guidance_is_named_as_the_cause(pipeline: XgemPipeline) -> None:
    name = pipeline.preset.generator("frontal")
    with (
        damaged(pipeline, name, float("nan")),
        pytest.raises(SamplingError, match="guidance_scale 50 is probably too large: try 20 or less"),
    ):
        pipeline({"report": NORMAL}, "frontal", seed=1, guidance_scale=50, **QUICK)


def test_scales_have_bounds(pipeline: XgemPipeline) -> None:
    for scale in (1e30, 100.5, {"frontal": 1e30}):
        with pytest.raises(InputError, match="expected a finite number from 0 to 100"):
            pipeline({}, "frontal", seed=1, guidance_scale=scale, **QUICK)
    with pytest.raises(InputError, match=r"controlnet_conditioning_scale is 1e\+30, expected .* from 0 to 10"):
        pipeline({}, "frontal", seed=1, controlnet_conditioning_scale=1e30, **QUICK)
    assert CallOptions.parse({"guidance_scale": MAX_GUIDANCE_SCALE}).guidance_scale == MAX_GUIDANCE_SCALE
    assert CallOptions.recorded({"guidance_scale": 500.0}).guidance_scale == 500  # a file of before the bounds


def test_a_plan_with_huge_guidance_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text(
        "name: nanset\noutputs: [frontal]\nseed: 7\nguidance_scale: 1.0e+30\nbalanced: {findings: [Edema], count: 1}\n"
    )
    assert main(["cohort", str(plan), "--out", str(tmp_path / "out")]) == 2
    assert "guidance_scale is 1e+30, expected a finite number from 0 to 100" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
