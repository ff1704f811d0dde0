"""Compiled denoisers make what they make otherwise, and are replayed compiled."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.published_layout import published_layout
from xgem.convert.random_init import random_checkpoint
from xgem.pipeline.pipeline import XgemPipeline
from xgem.pipeline.replay import replay
from xgem.types import DeviceError, InputError

TEXT = "Right basal consolidation."
QUICK: dict[str, Any] = {"progress": False, "seed": 1, "output_type": "np"}

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="torch.compile needs a C++ compiler"
)


@pytest.fixture(scope="module")
def plain(chexgen_checkpoint: Path) -> XgemPipeline:
    return XgemPipeline.from_pretrained(chexgen_checkpoint, device="cpu")


@pytest.fixture(scope="module")
def compiled(chexgen_checkpoint: Path) -> Iterator[XgemPipeline]:
    pipeline = XgemPipeline.from_pretrained(chexgen_checkpoint, device="cpu", compile=True)
    pipeline({"report": TEXT}, "frontal", num_inference_steps=2, **QUICK)
    yield pipeline
    torch.compiler.reset()


@needs_compiler
def test_it_makes_the_same_and_is_compiled_once(plain: XgemPipeline, compiled: XgemPipeline) -> None:
    for text, steps in ((TEXT, 2), ("No acute disease.", 5)):
        expected = plain({"report": text}, "frontal", num_inference_steps=steps, **QUICK).frontal[0]
        with torch.compiler.set_stance("fail_on_recompile"):
            made = compiled({"report": text}, "frontal", num_inference_steps=steps, **QUICK).frontal[0]
        np.testing.assert_allclose(made, expected, atol=1e-4)


@needs_compiler
def test_annotated_samples_are_made_as_without_it(plain: XgemPipeline, compiled: XgemPipeline) -> None:
    inputs = {"report": TEXT, "severity": 12}
    with torch.compiler.set_stance("fail_on_recompile"):
        made = compiled(inputs, "frontal", num_inference_steps=3, **QUICK).frontal[0]
    assert np.array_equal(made, plain(inputs, "frontal", num_inference_steps=3, **QUICK).frontal[0])


@needs_compiler
def test_it_is_recorded_and_replayed(chexgen_checkpoint: Path, compiled: XgemPipeline, tmp_path: Path) -> None:
    options: dict[str, Any] = QUICK | {"output_type": "pil", "num_inference_steps": 3}
    compiled({"report": TEXT}, "frontal", **options).save(tmp_path)
    again = replay(tmp_path / "frontal.png", model=chexgen_checkpoint)
    assert again.identical
    assert again.generation.metadata["compiled"] is True
    assert isinstance(again.generation.frontal[0], Image.Image)


@pytest.fixture(scope="module")
def unets(debug_checkpoint: Path) -> XgemPipeline:
    return XgemPipeline.from_pretrained(debug_checkpoint, device="cpu", compile=True)


@pytest.mark.parametrize(
    ("inputs", "outputs", "options"),
    [
        ({"report": TEXT}, ["frontal", "lateral"], {"guidance_scale": 1.0}),
        ({"report": "Clear."}, ["frontal", "lateral"], {"num_samples": 3, "guidance_scale": 4.0}),
        (None, ["frontal", "lateral", "report"], {"guidance_start": 0.5}),
        ({"report": TEXT}, ["frontal"], {"num_samples": 2, "num_inference_steps": 5}),
    ],
)
def test_unets_make_the_same_alone_and_jointly(
    debug_checkpoint: Path, unets: XgemPipeline, inputs: Any, outputs: list[str], options: dict[str, Any]
) -> None:
    pytest.importorskip("onnxruntime")
    plain = XgemPipeline.from_pretrained(debug_checkpoint, device="cpu")
    # Fresh alignments and last layers are zero: with them, a coupling that is left out would not be seen
    alignment = plain.component("alignment")
    torch.manual_seed(0)
    for parameter in alignment.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.2)
    unets.component("alignment").load_state_dict(alignment.state_dict())
    given = QUICK | {"output_type": "latent", "num_inference_steps": 3, "sampler": "dpmsolver++"} | options
    made, expected = (one(inputs, outputs, **given) for one in (unets, plain))
    for name in outputs:
        for one, other in zip(getattr(made, name), getattr(expected, name), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-3)
    if len(outputs) > 1:
        alone = plain(inputs, outputs, joint=False, **given)
        assert not torch.allclose(alone.frontal[0], made.frontal[0], rtol=1e-3, atol=1e-3)


def test_published_layers_are_compiled_too(debug_preset: Any, tmp_path: Path) -> None:
    """Joint transformers after levels and upsampling layers, and the middle that is repeated; batches of 1 and 3."""
    pytest.importorskip("onnxruntime")
    random_checkpoint(tmp_path, published_layout(debug_preset), seed=1)
    plain, compiled = (XgemPipeline.from_pretrained(tmp_path, device="cpu", compile=flag) for flag in (False, True))
    for samples, joint in ((1, True), (3, True), (2, False)):
        given: dict[str, Any] = QUICK | {
            "output_type": "latent", "num_inference_steps": 3, "sampler": "dpmsolver++", "num_samples": samples,
            "joint": joint, "guidance_scale": 2.0,
        }  # fmt: skip
        outputs = ["frontal", "lateral", "report"]
        expected, made = (one({}, outputs, **given) for one in (plain, compiled))
        for name in outputs:
            torch.testing.assert_close(made.outputs[name], expected.outputs[name], rtol=1e-3, atol=1e-3)


def test_compiled_unets_are_recorded_and_replayed(debug_checkpoint: Path, unets: XgemPipeline, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    options: dict[str, Any] = QUICK | {"output_type": "pil", "num_inference_steps": 3, "num_samples": 2}
    unets({"report": TEXT}, ["frontal", "lateral"], **options).save(tmp_path)
    again = replay(sorted(tmp_path.glob("lateral*.png"))[1], model=debug_checkpoint)
    assert again.identical
    assert again.generation.metadata["compiled"] is True


def test_what_unets_are_not_compiled_for(debug_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match="for the CPU in float32, not for cpu in bfloat16; leave compile out"):
        XgemPipeline.from_pretrained(debug_checkpoint, device="cpu", dtype="bfloat16", compile=True)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(InputError, match=r"the package onnxruntime, which is not installed: install xgem\[onnx\]"):
        XgemPipeline.from_pretrained(debug_checkpoint, device="cpu", compile=True)


def test_a_machine_without_compiler(chexgen_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    torch.compiler.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    pipeline = XgemPipeline.from_pretrained(chexgen_checkpoint, device="cpu", compile=True)
    with pytest.raises(DeviceError, match="the transformer cannot be compiled here, leave compile out"):
        pipeline({"report": TEXT}, "frontal", num_samples=3, num_inference_steps=2, **QUICK)
