"""A compiled transformer makes what it makes otherwise, is compiled once a shape, and is replayed compiled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from xgem.configs.preset import load_preset
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


def test_nothing_to_compile(tmp_path: Path) -> None:
    random_checkpoint(tmp_path / "unet", load_preset("debug"))
    with pytest.raises(InputError, match=r"unet: has no diffusion transformer, which is what compile is for"):
        XgemPipeline.from_pretrained(tmp_path / "unet", device="cpu", compile=True)


def test_a_machine_without_compiler(chexgen_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    torch.compiler.reset()
    monkeypatch.setattr(inductor.cpp, "cxx", ("no-such-compiler",))
    pipeline = XgemPipeline.from_pretrained(chexgen_checkpoint, device="cpu", compile=True)
    with pytest.raises(DeviceError, match="the transformer cannot be compiled here, leave compile out"):
        pipeline({"report": TEXT}, "frontal", num_samples=3, num_inference_steps=2, **QUICK)
