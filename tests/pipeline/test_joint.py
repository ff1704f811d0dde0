"""Several outputs of one request: together, apart, or starting from a given image."""

from __future__ import annotations

import gc
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.pipeline.conftest import radiograph
from xgem.configs.preset import Preset, load_preset
from xgem.convert.random_init import random_checkpoint
from xgem.pipeline.generation import Generation
from xgem.pipeline.pipeline import XgemPipeline
from xgem.pipeline.replay import replay
from xgem.types import CheckpointError, ConfigError, InputError

QUICK: dict[str, Any] = {"num_inference_steps": 4, "progress": False}
TEXT = "Large left pleural effusion."
ALL = ("frontal", "lateral", "report")


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> XgemPipeline:
    """With an alignment whose attention is strong enough to be seen in 8 bits."""
    pipe = XgemPipeline.from_pretrained(checkpoint, device="cpu")
    alignment: Any = pipe.component("alignment")
    for attentions in alignment.attention.values():
        for site in attentions.sites:
            site.leave.weight.data *= 50
    return pipe


def arrays(generation: Generation) -> dict[str, Any]:
    return {
        name: values[0] if isinstance(values[0], str) else np.asarray(values[0])
        for name, values in generation.outputs.items()
    }


def same(a: Any, b: Any) -> bool:
    return a == b if isinstance(a, str) else bool(np.array_equal(a, b))


# -------------------------------------------------------------------------------------------- joint and apart


@pytest.mark.parametrize("group", [(*pair,) for pair in itertools.combinations(ALL, 2)] + [ALL])
def test_apart_equals_the_single_calls_and_together_does_not(pipeline: XgemPipeline, group: tuple[str, ...]) -> None:
    apart = arrays(pipeline({}, list(group), seed=5, joint=False, output_type="np", **QUICK))
    single = {name: arrays(pipeline({}, name, seed=5, output_type="np", **QUICK))[name] for name in group}
    together = arrays(pipeline({}, list(group), seed=5, output_type="np", **QUICK))
    for name in group:
        assert same(apart[name], single[name])
    images = [name for name in group if name != "report"]  # greedy text of random weights may well be the same
    assert any(not same(together[name], single[name]) for name in images)


def test_metadata_say_which(pipeline: XgemPipeline) -> None:
    assert pipeline({}, ["frontal", "report"], seed=1, **QUICK).metadata["joint"] is True
    assert pipeline({}, ["frontal", "report"], seed=1, joint=False, **QUICK).metadata["joint"] is False
    assert pipeline({}, "frontal", seed=1, **QUICK).metadata["joint"] is False


def test_a_sample_does_not_depend_on_its_batch(pipeline: XgemPipeline) -> None:
    many = pipeline([{"report": TEXT}, {}], ["frontal", "lateral"], seed=[1, 2], output_type="np", **QUICK)
    for one, item, seed in zip(many, ({"report": TEXT}, {}), (1, 2), strict=True):
        alone = pipeline(item, ["frontal", "lateral"], seed=seed, output_type="np", **QUICK)
        for name in ("frontal", "lateral"):
            np.testing.assert_allclose(one.outputs[name][0], alone.outputs[name][0], atol=1e-4)


def test_memory_does_not_grow_with_the_steps(pipeline: XgemPipeline) -> None:
    alive: list[int] = []

    def count(pipe: XgemPipeline, step: int, timestep: int, values: dict[str, Any]) -> None:
        del pipe, step, timestep
        if values["output"] == "report":  # the last of a step
            alive.append(sum(isinstance(thing, torch.Tensor) for thing in gc.get_objects()))

    pipeline({}, list(ALL), seed=1, num_inference_steps=12, progress=False, callback_on_step_end=count)
    assert alive[-1] <= alive[3]


def test_outputs_not_asked_for_are_not_loaded(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "part")
    for name in ("report", "report_vae"):
        shutil.rmtree(tmp_path / "part" / name)
    part = XgemPipeline.from_pretrained(tmp_path / "part", device="cpu")
    assert part({}, ["frontal", "lateral"], seed=1, **QUICK).metadata["joint"] is True


@pytest.mark.parametrize("output", ["lateral", "report"])
def test_replay_of_joint_outputs(pipeline: XgemPipeline, tmp_path: Path, output: str) -> None:
    file = tmp_path / "f.png"
    Image.fromarray(np.uint8(radiograph() * 255)).save(file)
    inputs = [{"frontal": file}, {"frontal": file}]
    options: dict[str, Any] = {"num_samples": 2, "guidance_scale": {"report": 3.0}}
    made = pipeline(inputs, ["lateral", "report"], seed=[7, 8], **options, **QUICK)[1]
    made.save(tmp_path / "out")
    suffix = "txt" if output == "report" else "png"
    one = tmp_path / "out" / f"{output}-001.{suffix}"
    assert replay(one, model=pipeline, inputs={"frontal": file}, progress=False).identical


# ----------------------------------------------------------------------------------------- a given image kept


def test_less_strength_stays_closer(pipeline: XgemPipeline) -> None:
    codec: Any = pipeline.component("image_vae")
    kept = radiograph(3)
    distances = []
    for strength in (0.25, 0.5, 1.0):
        made = pipeline(
            {"report": TEXT}, "frontal", seed=1, image={"frontal": kept}, strength=strength, output_type="np", **QUICK
        )
        distances.append(float(np.abs(np.asarray(made.frontal[0]) - _rebuilt(pipeline, codec, kept)).mean()))
    assert distances[0] < distances[1] < distances[2]
    assert made.metadata["strength"] == 1.0
    anew = pipeline({"report": TEXT}, "frontal", seed=1, output_type="np", **QUICK)
    # At strength 1 what is left of the image is its share in the first, noisiest latents.
    assert float(np.abs(np.asarray(made.frontal[0]) - np.asarray(anew.frontal[0])).mean()) < distances[2]


@torch.no_grad()
def _rebuilt(pipeline: XgemPipeline, codec: Any, image: np.ndarray) -> np.ndarray:
    from xgem.modalities import get_modality

    value = get_modality("frontal").read(image, pipeline.preset).value[None]
    return ((codec.decode(codec.encode(value)) + 1) / 2).numpy()[0, 0]


def test_a_kept_output_speaks_to_the_others_only_when_sampled_jointly(pipeline: XgemPipeline) -> None:
    def laterals(joint: bool) -> list[Any]:
        options: dict[str, Any] = {"seed": 1, "strength": 0.5, "output_type": "np", "joint": joint, **QUICK}
        starts = ({"frontal": radiograph(seed)} for seed in (1, 2))
        return [
            pipeline({"report": TEXT}, ["frontal", "lateral"], image=start, **options).lateral[0] for start in starts
        ]

    alone = pipeline({"report": TEXT}, "lateral", seed=1, output_type="np", **QUICK).lateral[0]
    apart, jointly = laterals(False), laterals(True)
    assert same(apart[0], alone)
    assert same(apart[1], alone)
    assert not same(jointly[0], jointly[1])


@pytest.mark.parametrize("sampler", ["dpmsolver++", "sde-dpmsolver++", "ddim", "unipc"])
def test_replay_of_a_kept_output(pipeline: XgemPipeline, tmp_path: Path, sampler: str) -> None:
    file = tmp_path / "start.png"
    Image.fromarray(np.uint8(radiograph() * 255)).save(file)
    options: dict[str, Any] = {"image": {"frontal": file}, "strength": 0.5, "sampler": sampler}
    made = pipeline({"report": TEXT}, ["frontal", "lateral"], seed=7, **options, **QUICK)
    made.save(tmp_path / "out")
    for name in ("frontal", "lateral"):
        again = replay(tmp_path / "out" / f"{name}.png", model=pipeline, image={"frontal": file}, progress=False)
        assert again.identical
    with pytest.raises(InputError, match=r"its start image 'frontal' was 'start\.png'.*--image frontal"):
        replay(tmp_path / "out" / "frontal.png", model=pipeline, progress=False)
    other = tmp_path / "other.png"
    Image.fromarray(np.uint8(radiograph(9) * 255)).save(other)
    with pytest.raises(InputError, match="start image 'frontal' is not the recorded one"):
        replay(tmp_path / "out" / "frontal.png", model=pipeline, image={"frontal": other}, progress=False)


# ---------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.5}, "without an image to start from"),
        ({"image": {"frontal": radiograph()}, "strength": 0.0}, "expected a finite number above 0, up to 1"),
        ({"image": {"frontal": radiograph()}, "strength": 1.01}, "expected a finite number above 0, up to 1"),
        ({"image": {"frontal": radiograph()}, "strength": float("nan")}, "expected a finite number above 0"),
        ({"image": {"frontal": radiograph()}, "strength": "half"}, "expected a finite number above 0"),
        ({"image": {"frontal": radiograph()}, "strength": 0.01}, "is less than one step"),
        ({"image": {"lateral": radiograph()}}, "image is for 'lateral', which is not among the outputs"),
        ({"image": [{"frontal": radiograph()}] * 2}, "image has 2 items for 1 inputs"),
    ],
)
def test_what_cannot_be_kept(pipeline: XgemPipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        pipeline({}, ["frontal", "report"], **options, **QUICK)


def test_a_checkpoint_without_alignment_says_so(
    tmp_path: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain = load_preset("debug").model_dump()
    plain["alignment"] = None
    del plain["components"]["alignment"], plain["train"]["joint"]
    random_checkpoint(tmp_path / "plain", Preset.model_validate(plain))
    pipe = XgemPipeline.from_pretrained(tmp_path / "plain", device="cpu")
    with pytest.raises(InputError, match=r"has no alignment.*joint=False"):
        pipe({}, ["frontal", "lateral"], joint=True, **QUICK)
    assert pipe({}, ["frontal", "lateral"], joint=False, seed=1, **QUICK).metadata["joint"] is False
    assert not caplog.records
    assert pipe({}, ["frontal", "lateral"], seed=1, **QUICK).metadata["joint"] is False
    assert "outputs are sampled independently" in caplog.text
    shutil.copytree(checkpoint, tmp_path / "untrained")
    index = (tmp_path / "untrained" / "model_index.json").read_text()
    record = json.loads(index)
    del record["components"]["alignment"]
    (tmp_path / "untrained" / "model_index.json").write_text(json.dumps(record))
    pipe = XgemPipeline.from_pretrained(tmp_path / "untrained", device="cpu")
    with pytest.raises(CheckpointError, match=r"no trained alignment.*joint=False"):
        pipe({}, ["frontal", "lateral"], joint=True, **QUICK)
    assert pipe({}, ["frontal", "lateral"], seed=1, **QUICK).metadata["joint"] is False


def test_a_modality_without_environment_encoder_is_named(tmp_path: Path) -> None:
    part = load_preset("debug").model_dump()
    del part["components"]["alignment"]["outputs"]["report"]
    random_checkpoint(tmp_path / "part", Preset.model_validate(part))
    pipe = XgemPipeline.from_pretrained(tmp_path / "part", device="cpu")
    with pytest.raises(InputError, match="no environment encoder for 'report', only for: frontal, lateral"):
        pipe({}, ["frontal", "report"], **QUICK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alignment": "frontal"}, "which is none of kind 'alignment'"),
        ({"alignment": "missing"}, "which is none of kind 'alignment'"),
    ],
)
def test_presets_that_align_wrongly(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preset.parse(load_preset("debug").model_dump() | change, "here.yaml")
    wrong = load_preset("debug").model_dump()
    wrong["components"]["alignment"]["outputs"]["report"]["latent_shape"] = (7,)
    with pytest.raises(ConfigError, match=r"takes report latents \(7,\), they are \(16,\)"):
        Preset.parse(wrong, "here.yaml")
    wrong = load_preset("debug").model_dump()
    wrong["components"]["alignment"]["guided"] = ("mask",)
    with pytest.raises(ConfigError, match=r"guides \['mask'\], which it does not align"):
        Preset.parse(wrong, "here.yaml")
