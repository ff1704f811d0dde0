"""What may be asked of a pipeline, checked before anything is loaded."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgem.configs.preset import Preset, load_preset
from xgem.pipeline.limits import MAX_SEED
from xgem.pipeline.options import CallOptions
from xgem.pipeline.request import Request, make_request
from xgem.types import InputError

KNOWN = ["frontal", "lateral", "report", "mask"]
SAMPLERS = ["sde-dpmsolver++", "dpmsolver++", "ddim"]


@pytest.fixture(scope="module")
def preset() -> Preset:
    return load_preset("openi-256")


def ask(preset: Preset, inputs: Any, outputs: Any, **options: Any) -> Request:
    return make_request(
        preset, KNOWN, SAMPLERS, inputs, outputs, CallOptions.parse({"seed": 0, "joint": True, **options})
    )


def test_defaults_come_from_the_preset(preset: Preset) -> None:
    request = ask(preset, {"frontal": "f.png"}, "lateral")
    assert request.outputs == ("lateral",)
    assert request.steps == preset.sampling.num_inference_steps
    assert request.options.sampler == preset.sampling.sampler
    assert request.guidance_scale == {"lateral": preset.sampling.guidance_scale["lateral"]}


@pytest.mark.parametrize("inputs", [None, {}, [{}]])
def test_no_inputs_are_allowed(preset: Preset, inputs: Any) -> None:
    assert ask(preset, inputs, ["frontal", "report"]).items == ({},)


@pytest.mark.parametrize(
    ("inputs", "outputs", "message"),
    [
        ({"ct": 1}, ["lateral"], "modality 'ct' is not known, expected one of: frontal, lateral, report"),
        ({}, ["ct"], "modality 'ct' is not known"),
        ({3: 1}, ["lateral"], "modality 3 is not known"),
        ({"mask": 1}, ["lateral"], r"takes no 'mask', only: .*; leave it out, or name another model \(--model\)"),
        ({}, ["mask"], "cannot generate 'mask', only: frontal, lateral, report"),
        ({"frontal": 1}, ["frontal"], "is an input and an output"),
        ({"frontal": 1}, ["lateral", "frontal"], "is an input and an output"),
        ({"frontal": 1}, [], "no outputs"),
        ({"frontal": 1}, "", "no outputs"),
        ({"frontal": 1}, None, "no outputs"),
        ({"frontal": 1}, ["lateral", "lateral"], "requested twice"),
        ({"frontal": None}, ["lateral"], "is None"),
        ({"report": "Clear \udcff lungs."}, ["lateral"], "not valid UTF-8"),
        ([], ["lateral"], "empty list"),
        ("frontal", ["lateral"], "expected a mapping"),
        ([{"frontal": 1}, "x"], ["lateral"], r"inputs\[1\] is of type str"),
        ([{"frontal": 1}, {"lateral": 1}], ["lateral"], "is an input and an output"),
    ],
)
def test_what_cannot_be_asked(preset: Preset, inputs: Any, outputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ask(preset, inputs, outputs)


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("seed", -1, "seed is -1"),
        ("seed", MAX_SEED + 1, "expected a whole number from 0"),
        ("seed", 1.5, "seed is 1.5"),
        ("seed", True, "seed is True"),
        ("seed", [1, 2], "2 seeds for 1 inputs"),
        ("num_inference_steps", 0, "num_inference_steps is 0, expected a whole number from 1 to 1000"),
        ("num_inference_steps", 1001, "num_inference_steps is 1001"),
        ("num_inference_steps", 2.0, "expected a whole number"),
        ("num_samples", 0, "num_samples is 0"),
        ("batch_size", 0, "batch_size is 0"),
        ("guidance_scale", math.nan, "guidance_scale is nan"),
        ("guidance_scale", math.inf, "expected a finite number"),
        ("guidance_scale", -1, "from 0 to 100"),
        ("guidance_scale", "2", "expected a finite number"),
        ("guidance_scale", {"lateral": math.nan}, "guidance_scale for 'lateral' is nan"),
        ("guidance_scale", {"report": 2.0}, "names 'report'"),
        ("sampler", "euler", r"sampler 'euler' is not known, expected one of: sde-dpmsolver\+\+, dpmsolver\+\+, ddim"),
        ("output_type", "jpg", "output_type 'jpg' is not known"),
    ],
)
def test_options_that_cannot_be_used(preset: Preset, option: str, value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        ask(preset, {"frontal": 1}, "lateral", **{option: value})
    assert "\n" not in str(raised.value)


def test_guidance_can_be_given_for_some_outputs(preset: Preset) -> None:
    request = ask(preset, {"frontal": 1}, ["lateral", "report"], guidance_scale={"report": 0})
    assert request.guidance_scale == {"lateral": preset.sampling.guidance_scale["lateral"], "report": 0.0}


@given(seeds=st.lists(st.integers(0, MAX_SEED), min_size=1, max_size=5))
def test_each_item_has_its_seed(preset: Preset, seeds: list[int]) -> None:
    assert ask(preset, [{}] * len(seeds), "report", seed=seeds).seeds == tuple(seeds)
    assert ask(preset, [{}] * len(seeds), "report", seed=seeds[0]).seeds == (seeds[0],) * len(seeds)


def test_random_seeds_differ_and_can_be_typed_again(preset: Preset) -> None:
    seeds = ask(preset, [{}] * 20, "report", seed=None).seeds
    assert len(set(seeds)) == 20
    assert all(0 <= seed < 2**32 for seed in seeds)
