"""What a user sees of a pipeline and a result: latents and previews, repr, notebooks, dir."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipeline.conftest import QUICK, same
from xgem.generators.sampling import SAMPLERS
from xgem.pipeline.generation import Generation
from xgem.pipeline.pipeline import XgemPipeline
from xgem.pipeline.privacy_gate import PrivacyGate
from xgem.types import InputError, ShapeError


def test_latents_decode_to_the_sample(pipeline: XgemPipeline, tmp_path: Path) -> None:
    outputs = ["frontal", "report"]
    made = pipeline({}, outputs, seed=1, num_samples=2, **QUICK)
    latent = pipeline({}, outputs, seed=1, num_samples=2, output_type="latent", **QUICK)
    for name in outputs:
        shape = pipeline.component(pipeline.preset.generator(name)).latent_shape  # type: ignore[union-attr]
        assert [tuple(z.shape) for z in latent.outputs[name]] == [shape] * 2
        decoded = pipeline.decode(name, torch.stack(list(latent.outputs[name])))
        assert [str(one) if name == "report" else one.tobytes() for one in decoded] == [
            str(one) if name == "report" else one.tobytes() for one in made.outputs[name]
        ]
    for name in outputs:
        with pytest.raises(InputError, match=r"to write, got .*decode latents first"):
            Generation({name: latent.outputs[name]}, {}).save(tmp_path / "out")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="expected one of: frontal, lateral, report"):
        pipeline.decode("ct", torch.zeros(1, 4, 4, 4))
    with pytest.raises(InputError, match="output_type 'jpg' is not known"):
        pipeline.decode("frontal", latent.frontal[0][None], output_type="jpg")
    with pytest.raises(InputError, match="'latent' is what is decoded"):
        pipeline.decode("frontal", latent.frontal[0][None], output_type="latent")
    with pytest.raises(ShapeError, match="expected latents"):
        pipeline.decode("frontal", latent.frontal[0])
    with pytest.raises(InputError, match="privacy_gate compares images"):
        pipeline({}, "frontal", output_type="latent", privacy_gate=PrivacyGate(indexes={}), **QUICK)


def test_a_callback_can_show_a_preview(pipeline: XgemPipeline) -> None:
    previews: list[Any] = []
    latents: list[torch.Tensor] = []

    def preview(pipe: XgemPipeline, step: int, timestep: int, values: dict[str, Any]) -> None:
        assert [(row.item, row.number, row.seed) for row in values["rows"]] == [(0, 0, 1)]
        latents.append(values["latents"])
        previews.append(pipe.decode(values["output"], values["estimate"])[0])

    made = pipeline({}, "frontal", seed=1, callback_on_step_end=preview, num_inference_steps=3, progress=False)
    assert len(previews) == 3
    assert all(isinstance(image, Image.Image) for image in previews)
    assert same(previews[-1], made.frontal[0])
    assert not same(previews[0], made.frontal[0])
    assert not same(previews[0], pipeline.decode("frontal", latents[0])[0])  # of what is expected, not of the noise


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_estimate_ends_as_the_sample(pipeline: XgemPipeline, sampler: str) -> None:
    estimates: list[torch.Tensor] = []
    made = pipeline(
        {},
        "frontal",
        seed=1,
        sampler=sampler,
        output_type="latent",
        callback_on_step_end=lambda *values: estimates.append(values[-1]["estimate"]),
        num_inference_steps=4,
        progress=False,
    )
    torch.testing.assert_close(estimates[-1][0], made.frontal[0])
    spread = [float(one.std()) for one in estimates]
    assert spread[0] < 3 * spread[-1] + 1  # in terms of the sample, not of the noise


def test_repr_is_one_line_that_says_what_there_is(pipeline: XgemPipeline) -> None:
    size = pipeline.preset.transform.size
    made = pipeline({}, ["frontal", "lateral"], seed=7, num_samples=2, **QUICK)
    both = f"2 images {size} x {size}"
    assert repr(made) == f"Generation(frontal: {both}; lateral: {both}; seed 7)"
    text = Generation({"report": ["No acute disease."]}, {"seed": 1})
    assert repr(text) == "Generation(report: 'No acute disease.'; seed 1)"
    many = Generation({"report": ["word " * 50, "b"]}, {"seed": 1})
    assert repr(many).startswith("Generation(report: 2 texts, first 'word word")
    assert len(repr(many)) < 120
    arrays = Generation({"frontal": [np.zeros((8, 8))], "lateral": [torch.zeros(4, 2, 2)]}, {})
    assert repr(arrays) == "Generation(frontal: 1 array (8, 8); lateral: 1 tensor (4, 2, 2); seed None)"
    assert repr(pipeline) == (
        f"XgemPipeline(random {pipeline.hash}, cpu float32: frontal, lateral, report -> frontal, lateral, report)"
    )


def test_a_notebook_shows_images_and_escaped_texts(pipeline: XgemPipeline) -> None:
    made = pipeline({}, "frontal", seed=7, num_samples=2, **QUICK)
    html = made._repr_html_()
    assert html.count('<img src="data:image/png;base64,') == 2
    assert "Synthetic, seed 7." in html
    array = pipeline({}, "frontal", seed=7, num_samples=2, output_type="np", **QUICK)
    assert array._repr_html_() == html
    tensor = pipeline({}, "frontal", seed=7, num_samples=2, output_type="pt", **QUICK)
    assert tensor._repr_html_() == html
    text = Generation({"report": ["a <b> & c"], "frontal": [torch.zeros(4, 2, 2)]}, {"seed": 1})._repr_html_()
    assert "a &lt;b&gt; &amp; c" in text
    assert "1 tensor (4, 2, 2)" in text
    assert "<td>frontal</td>" in pipeline._repr_html_()


def test_dir_lists_the_outputs(pipeline: XgemPipeline) -> None:
    made = pipeline({}, ["frontal", "report"], seed=7, **QUICK)
    assert {"frontal", "report", "save", "metadata"} <= set(dir(made))
    assert "lateral" not in dir(made)
