"""Every option of a request, wherever options go: Python, command line, plans of cohorts, metadata, replay."""

from __future__ import annotations

import dataclasses
import inspect
import json
import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import xgem
from xgem.checkpoints.locate import DEFAULT_MODEL
from xgem.cli import main
from xgem.cohort.check import options as planned
from xgem.cohort.plan import Plan
from xgem.generators.sampling import FORMER_SAMPLERS, SAMPLERS
from xgem.pipeline import pipeline as pipeline_module
from xgem.pipeline.generation import read_metadata
from xgem.pipeline.metadata import FORMAT, upgraded
from xgem.pipeline.options import RECORDED, RENAMED, CallKeywords, CallOptions, SamplingOptions, option
from xgem.pipeline.pipeline import XgemPipeline
from xgem.pipeline.privacy_gate import Index, PrivacyGate, Verdict
from xgem.pipeline.replay import replay
from xgem.types import CheckpointError, InputError, OptionError

FILES = Path(__file__).parent / "files"
ALL = tuple(CallOptions.model_fields)
OUTPUTS = ["frontal", "lateral"]


def grey(seed: int = 0) -> Any:
    y, x = np.mgrid[0:64, 0:64] / 64
    return np.float32(0.5 + 0.4 * np.sin((6 + seed) * x) * np.cos(4 * y))


class OpenGate(PrivacyGate):
    """A gate that accepts every image."""

    def indexed(self, model: Any, outputs: Sequence[str]) -> PrivacyGate:
        return self

    def check(self, model: Any, view: str, value: Any) -> Verdict:
        return Verdict(1.0, 1.0, False)


VALUES: dict[str, Any] = {
    "num_inference_steps": 3,
    "guidance_scale": 2.5,
    "guidance_start": 0.25,
    "guidance_end": 0.75,
    "guidance_rescale": 0.5,
    "sampler": "ddim",
    "joint": False,
    "controlnet_conditioning_scale": 0.5,
    "control_guidance_end": 0.25,
    "greedy": False,
    "report_section": "impression",
    "num_candidates": 2,
    "batch_size": 3,
    "seed": 77,
    "generator": torch.Generator().manual_seed(3),
    "num_samples": 2,
    "image": {"frontal": grey()},
    "strength": 0.75,
    "mask_image": {"frontal": grey() > 0.5},
    "device": "cpu",
    "dtype": "bfloat16",
    "progress": False,
    "callback_on_step_end": lambda *_: None,
    "output_type": "np",
    "allow_any": True,
    "voi": "window",
    "rescale": "minmax",
    "invert": True,
    "privacy_gate": OpenGate(
        indexes={"frontal": Index("", np.zeros((1, 64, 64), np.uint8), np.zeros((1, 4), np.float32), 0.0, 0.0)}
    ),
}
"""A value of each option that is not its default (but for ``device``, which has one here)."""


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[CallOptions]:
    """The options of every request that a pipeline makes, with defaults filled in."""
    requests: list[CallOptions] = []
    make_request = pipeline_module.make_request

    def spy(*arguments: Any) -> Any:
        request = make_request(*arguments)
        requests.append(request.options)
        return request

    monkeypatch.setattr(pipeline_module, "make_request", spy)
    return requests


def given(name: str) -> dict[str, Any]:
    """A request's options with the option ``name``, and what it needs beside it."""
    options: dict[str, Any] = {"num_inference_steps": 2, "progress": False, "seed": 1, name: VALUES[name]}
    if name == "generator":
        del options["seed"]
    if name in ("strength", "mask_image"):
        options["image"] = VALUES["image"]
    return options


# ------------------------------------------------------------------------------------------------------ Python


def test_each_option_has_a_value_here_a_help_text_and_a_keyword() -> None:
    assert set(VALUES) == set(ALL)
    assert all(len(option(name).help) > 10 for name in ALL)
    assert list(inspect.get_annotations(CallKeywords)) == list(ALL)


@pytest.mark.parametrize("function", [XgemPipeline.__call__, xgem.generate])
def test_help_shows_each_option(function: Any) -> None:
    signature = inspect.signature(function)
    for name, field in CallOptions.model_fields.items():
        assert signature.parameters[name].default == field.default
        assert signature.parameters[name].kind is inspect.Parameter.KEYWORD_ONLY
        assert f"{name}: {option(name).help}" in function.__doc__


@pytest.mark.parametrize("name", ALL)
def test_python_takes_each_option(pipeline: XgemPipeline, seen: list[CallOptions], name: str) -> None:
    try:
        generation = pipeline({}, OUTPUTS, **given(name))
    finally:
        pipeline.to("cpu", "float32")
    assert list(generation) == OUTPUTS
    if name == "guidance_scale":
        assert seen[0].guidance_scale == dict.fromkeys(OUTPUTS, 2.5)
    else:
        assert getattr(seen[0], name) is VALUES[name] or getattr(seen[0], name) == VALUES[name]


def test_what_is_no_option(pipeline: XgemPipeline) -> None:
    for name, meant in {
        "steps": " (did you mean num_inference_steps?)",
        "guidence_scale": " (did you mean guidance_scale?)",
        "colour": "",
    }.items():
        with pytest.raises(OptionError) as raised:
            pipeline({}, "frontal", **cast(Any, {name: 2}))
        assert str(raised.value) == (
            f"unexpected keyword argument {name!r}{meant}; options are: {', '.join(CallOptions.model_fields)}"
        )
    assert issubclass(OptionError, TypeError)  # as Python's own functions raise


@pytest.mark.parametrize("name", [name for name in ALL if option(name).limits is not None])
def test_values_out_of_range_say_what_was_expected(name: str) -> None:
    limits = option(name).limits
    assert limits is not None
    for value in (limits.low - 1, "1", True):
        with pytest.raises(InputError) as raised:
            CallOptions.parse({name: value})
        assert str(raised.value) == f"{name} is {value!r}, expected {limits}"


# -------------------------------------------------------------------------------------------- metadata and replay


@pytest.mark.parametrize("name", ALL)
def test_metadata_hold_each_recorded_option_and_a_replay_restores_it(
    pipeline: XgemPipeline, seen: list[CallOptions], tmp_path: Path, name: str
) -> None:
    if not option(name).recorded and name not in ("seed", "image", "mask_image"):
        recorded = pipeline({}, "frontal", **given("num_inference_steps")).metadata
        # Of the pipeline's device and dtype, a replay opens the checkpoint with the recorded ones.
        assert (name in recorded) is (name in ("device", "dtype"))
        return
    options = given(name)
    start = tmp_path / "start.png"
    if "image" in options:
        from PIL import Image

        Image.fromarray(np.uint8(grey() * 255)).save(start)
        options["image"] = {"frontal": start}
    generation = pipeline({}, OUTPUTS, **options)
    values = {"guidance_scale": dict.fromkeys(OUTPUTS, 2.5)}.get(name, VALUES[name])
    if name in ("image", "mask_image"):
        assert generation.metadata[name]["frontal"]["origin"] == ("start.png" if name == "image" else "array")
    else:
        assert generation.metadata[name] == values
    generation.save(tmp_path / "out")
    file = next((tmp_path / "out").glob("frontal*.png"))
    files = {key: options[key] for key in ("image", "mask_image") if key in options}
    again = replay(file, model=pipeline, progress=False, **files)
    assert again.identical
    before, after = seen
    restored = [field for field in RECORDED if field not in ("num_samples", "guidance_scale")]
    assert {field: getattr(before, field) for field in restored if field != "joint"} == {
        field: getattr(after, field) for field in restored if field != "joint"
    }
    assert before.joint == after.joint
    assert {key: cast(Mapping[str, float], before.guidance_scale)[key] for key in cast(Any, after.guidance_scale)} == (
        after.guidance_scale
    )


def test_metadata_say_their_format(pipeline: XgemPipeline) -> None:
    assert pipeline({}, "frontal", **given("seed")).metadata["format"] == FORMAT
    for version in (FORMAT + 1, 0, "2"):
        with pytest.raises(InputError, match=r"metadata format is .*replay it with a newer xgem"):
            upgraded({"format": version})


def test_metadata_of_the_first_version_are_read() -> None:
    old = json.loads((FILES / "report-0.1.0.json").read_text(encoding="utf-8"))
    new = upgraded(old)
    assert not RENAMED.keys() & new.keys()
    assert {key: old[key] for key in old if key not in RENAMED} == {
        key: new[key] for key in new if key not in {*RENAMED.values(), "format"}
    }
    assert [old[key] for key in RENAMED] == [new[key] for key in RENAMED.values()]


@pytest.mark.parametrize("steps", [2, 7])
def test_a_ddim_sample_of_before_format_3_is_generated_again(
    pipeline: XgemPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    options: dict[str, Any] = {"seed": 1, "num_inference_steps": steps, "sampler": "ddim", "progress": False}
    now = pipeline({}, "frontal", **options)
    monkeypatch.setitem(SAMPLERS, "ddim", FORMER_SAMPLERS["ddim-leading"])
    before = pipeline({}, "frontal", **options)
    monkeypatch.undo()
    before = dataclasses.replace(before, metadata={**before.metadata, "format": 2})
    (file,) = before.save(tmp_path / "before")
    again = replay(file, model=pipeline, progress=False)
    assert again.identical
    assert not np.array_equal(np.asarray(now.frontal[0]), np.asarray(before.frontal[0]))
    (file,) = again.generation.save(tmp_path / "again")
    assert replay(file, model=pipeline, progress=False).identical
    options["sampler"] = "ddim-leading"
    leading = pipeline({}, "frontal", **options)
    np.testing.assert_array_equal(np.asarray(leading.frontal[0]), np.asarray(before.frontal[0]))


def test_a_report_of_the_first_version_is_generated_again(tmp_path: Path) -> None:
    written = json.loads((FILES / "report-0.1.0.json").read_text(encoding="utf-8"))
    for suffix in (".json", ".txt"):
        shutil.copy(FILES / f"report-0.1.0{suffix}", tmp_path / f"old{suffix}")
    with pytest.raises(CheckpointError, match=r"openi-128.* give it as model"):  # no longer part of xgem
        replay(tmp_path / "old.txt", device="cpu", progress=False)
    pipeline = XgemPipeline.from_pretrained(DEFAULT_MODEL, device="cpu")
    named = ("seed", "num_samples", "sampler", "num_inference_steps", "guidance_scale", "strength")
    kept = {"report": written["keep"]["report"]["text"]}
    made = pipeline({}, "report", image=kept, **{name: written[name] for name in named}, progress=False)
    now = {name: made.metadata[name] for name in ("checkpoint", "preset", "torch", "threads")}
    (tmp_path / "report.json").write_text(json.dumps(written | now), encoding="utf-8")
    (tmp_path / "report.txt").write_text(f"{made.report[0]}\n", encoding="utf-8")
    again = replay(tmp_path / "report.txt", device="cpu", progress=False)
    assert again.generation.report == [(tmp_path / "report.txt").read_text(encoding="utf-8").strip()]
    assert again.identical
    again.generation.save(tmp_path / "again")
    values = read_metadata(tmp_path / "again" / "report-000.txt")  # of two samples
    assert values["image"]["report"]["text"] == "Heart size is normal. Lungs are clear."


# ------------------------------------------------------------------------------------------------- command line


class Recorder:
    """Stands for a pipeline, and keeps what it was called with."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = {}

    def load(self, model: Any, *, revision: Any, device: Any, dtype: Any) -> Recorder:
        self.options |= {"device": device, "dtype": dtype}
        return self

    def __call__(self, inputs: Any, outputs: Any, **options: Any) -> Any:
        self.options |= options
        raise InputError("recorded")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    recorder = Recorder()
    monkeypatch.setattr("xgem.api.load", recorder.load)
    return recorder


def run(tmp_path: Path, *arguments: str) -> int:
    return main(["generate", "--outputs", "frontal", "--out", str(tmp_path / "out"), *arguments])


FLAGS = {
    "joint": ["--independent"],
    "greedy": ["--no-greedy"],
    "progress": ["--no-progress"],
    "allow_any": ["--allow-any"],
    "invert": ["--invert"],
    "image": ["--image", "frontal=a.png"],
    "mask_image": ["--mask-image", "frontal=a.png"],
}


@pytest.mark.parametrize("name", [name for name in ALL if option(name).command_line])
def test_the_command_line_takes_each_option(recorder: Recorder, tmp_path: Path, name: str) -> None:
    assert run(tmp_path, *FLAGS.get(name, [f"--{name.replace('_', '-')}", str(VALUES[name])])) == 2
    expected = {"frontal": "a.png"} if name in ("image", "mask_image") else VALUES[name]
    assert recorder.options[name] == expected
    # What is not given is left to the defaults of the options.
    assert {key for key, value in recorder.options.items() if value is not None} == {name}


def test_the_command_line_says_what_each_option_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--help"]) == 0
    shown = "".join(capsys.readouterr().out.split()).replace("│", "")
    for name in (name for name in ALL if option(name).command_line):
        first = "".join(option(name).help.split()[:4])
        assert first in shown, name


def test_options_that_only_python_takes() -> None:
    assert {name for name in ALL if not option(name).command_line} == {
        "generator", "callback_on_step_end", "output_type", "privacy_gate",
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------- cohorts

PLAN: dict[str, Any] = {
    "name": "toy", "outputs": OUTPUTS, "seed": 7, "balanced": {"findings": ["Edema"], "count": 2},
}  # fmt: skip


class Aligned:
    aligned = True


@pytest.mark.parametrize("name", ALL)
def test_plans_take_each_sampling_option(name: str) -> None:
    if name not in SamplingOptions.model_fields:
        assert name in Plan.model_fields or name not in PLAN
        assert name == "seed" or name not in Plan.model_fields
        return
    plan = Plan.model_validate({**PLAN, name: VALUES[name]})
    assert getattr(planned(plan, OUTPUTS, cast(XgemPipeline, Aligned())), name) == VALUES[name]
    assert plan.sha256(None) != Plan.model_validate(PLAN).sha256(None)


def test_the_hash_of_a_plan_is_that_of_the_first_version() -> None:
    plain = Plan.model_validate(
        {
            "name": "alpha", "model": "openi-128", "outputs": ["frontal", "lateral", "report"], "split": "train",
            "seed": 7, "num_inference_steps": 4, "guidance_scale": {"frontal": 2.0, "report": 5.0}, "batch_size": 3,
            "balanced": {
                "findings": ["No Finding", "Pleural Effusion", ["Cardiomegaly", "Edema"]],
                "views": ["frontal", ["frontal", "lateral"]], "count": 2,
            },
        }
    )  # fmt: skip
    assert plain.sha256(None) == "dde4345e82e24b80003d586455716980c25385a46d67e613d44c8c9da75b8025"
    with pytest.warns(DeprecationWarning, match="control_end is deprecated, use control_guidance_end"):
        old = Plan.model_validate({**PLAN, "control_end": 0.6})
    assert old == Plan.model_validate({**PLAN, "control_guidance_end": 0.6})


# ---------------------------------------------------------------------------------------------------- old names


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_old_names_are_accepted_with_a_warning(
    pipeline: XgemPipeline, recorder: Recorder, tmp_path: Path, capsys: pytest.CaptureFixture[str], old: str, new: str
) -> None:
    options = given(new)
    expected = pipeline({}, "frontal", **options)
    value = options.pop(new)
    for call in (pipeline, lambda *a, **o: xgem.generate(*a, model=pipeline, **o)):
        with pytest.warns(DeprecationWarning, match=f"^{old} is deprecated, use {new}$") as warned:
            generation = call({}, "frontal", **{**options, old: value})
        assert [Path(one.filename) for one in warned if old in str(one.message)] == [Path(__file__)]
        assert np.array_equal(np.asarray(generation.frontal[0]), np.asarray(expected.frontal[0]))
        with pytest.raises(InputError, match=f"{old} is the old name of {new}, and both were given"):
            call({}, "frontal", **{**options, old: value, new: value})
    flag, flag_now = (f"--{name.replace('_', '-')}" for name in (old, new))
    text = "frontal=a.png" if new == "image" else str(value)
    capsys.readouterr()
    run(tmp_path, flag, text)
    assert recorder.options[new] == ({"frontal": "a.png"} if new == "image" else value)
    assert f"xgem: warning: {flag} is deprecated, use {flag_now}\n" in capsys.readouterr().err
    assert run(tmp_path, flag, text, flag_now, text) == 2
    assert f"{flag} is the old name of {flag_now}, and both were given" in capsys.readouterr().err
    assert main(["generate", "--help"]) == 0
    assert f"{flag} " not in capsys.readouterr().out


def test_replay_takes_the_old_name(pipeline: XgemPipeline, tmp_path: Path) -> None:
    pipeline({}, "frontal", **given("seed")).save(tmp_path / "out")
    file = tmp_path / "out" / "frontal.png"
    with pytest.warns(DeprecationWarning, match="keep is deprecated, use image"):
        assert replay(file, keep={}, model=pipeline, progress=False).identical
    with pytest.raises(TypeError, match="unexpected keyword argument 'kept'"):
        replay(file, kept={}, model=pipeline)


def test_names_of_today_warn_of_nothing(pipeline: XgemPipeline) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".* is deprecated, use ", DeprecationWarning)
        for new in RENAMED.values():
            pipeline({}, "frontal", **given(new))
