"""What is written beside a sample, that it is written whole or not at all, and that it is enough to make it again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from xgem.configs.preset import load_preset
from xgem.convert.random_init import random_checkpoint
from xgem.data.transforms import SquashedFile
from xgem.pipeline.generation import Generation, read_metadata
from xgem.pipeline.pipeline import XgemPipeline
from xgem.pipeline.replay import replay
from xgem.types import CheckpointError, DeviceError, InputError, OutputError

QUICK: dict[str, Any] = {"num_inference_steps": 2, "progress": False}
TEXT = "Large left pleural effusion."


def write_image(path: Path, seed: int = 0) -> Path:
    y, x = np.mgrid[0:48, 0:64] / 64
    phase = np.random.default_rng(seed).uniform(0, 6)
    Image.fromarray(np.uint8(128 + 100 * np.sin(6 * x + phase) * np.cos(4 * y))).save(path)
    return path


@pytest.fixture(scope="module")
def made(pipeline: XgemPipeline, tmp_path_factory: pytest.TempPathFactory) -> Generation:
    path = write_image(tmp_path_factory.mktemp("input") / "f.png")
    return pipeline({"frontal": path}, ["lateral", "report"], seed=7, guidance_scale={"report": 3}, **QUICK)


def test_metadata_say_where_a_sample_comes_from(pipeline: XgemPipeline, made: Generation) -> None:
    values = json.loads(json.dumps(made.metadata))
    assert values["synthetic"] is True
    assert values["joint"] is (len(values["outputs"]) > 1)
    assert values["checkpoint"] == {"name": "random", "hash": pipeline.hash}
    assert values["preset"] == "debug"
    assert values["outputs"] == ["lateral", "report"]
    assert (values["seed"], values["num_inference_steps"]) == (7, 2)
    assert values["sampler"] == pipeline.preset.sampling.sampler
    assert values["guidance_scale"]["report"] == 3
    assert (values["device"], values["dtype"]) == ("cpu", "float32")
    frontal = values["inputs"]["frontal"]
    assert frontal["origin"] == "f.png"
    assert len(frontal["sha256"]) == 64
    assert made.sample_metadata("report")["guidance_scale"] == 3


def test_no_path_of_this_machine_is_written(pipeline: XgemPipeline, made: Generation) -> None:
    text = json.dumps(made.metadata)
    assert str(pipeline.root.parent) not in text
    assert str(Path.cwd()) not in text


def test_one_sample_has_a_plain_name_and_several_are_numbered(
    pipeline: XgemPipeline, made: Generation, tmp_path: Path
) -> None:
    assert [p.name for p in made.save(tmp_path / "one")] == ["lateral.png", "report.txt"]
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == [
        "generation.json",
        "lateral.png",
        "report.json",
        "report.txt",
    ]
    two = pipeline({}, "frontal", seed=1, num_samples=2, **QUICK)
    assert [p.name for p in two.save(tmp_path / "two")] == ["frontal-000.png", "frontal-001.png"]


def test_every_file_says_that_it_is_synthetic(made: Generation, tmp_path: Path) -> None:
    made.save(tmp_path / "out")
    with Image.open(tmp_path / "out" / "lateral.png") as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        assert "Synthetic" in image.text
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), np.asarray(made.lateral[0]))
    for name in ("lateral.png", "report.txt", "report.json"):
        values = read_metadata(tmp_path / "out" / name)
        assert values["synthetic"] is True
        assert values["output"] == name.split(".")[0]
    record = json.loads((tmp_path / "out" / "generation.json").read_text())
    assert record["synthetic"] is True
    assert [entry["file"] for entries in record["files"].values() for entry in entries] == ["lateral.png", "report.txt"]
    assert (tmp_path / "out" / "report.txt").read_text().strip() == made.report[0]


@pytest.mark.parametrize("output_type", ["np", "pt"])
def test_arrays_are_saved_as_the_same_image(pipeline: XgemPipeline, tmp_path: Path, output_type: str) -> None:
    for kind in ("pil", output_type):
        pipeline({}, "frontal", seed=1, output_type=kind, **QUICK).save(tmp_path / kind)
    one, other = (Image.open(tmp_path / kind / "frontal.png") for kind in ("pil", output_type))
    assert one.tobytes() == other.tobytes()


# ------------------------------------------------------------------------------------------------- writing


def test_a_used_folder_is_refused_and_left_alone(made: Generation, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="is not empty"):
        made.save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_overwriting_replaces_results_and_nothing_else(
    pipeline: XgemPipeline, made: Generation, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    pipeline({}, ["frontal", "report"], seed=1, num_samples=2, **QUICK).save(out)
    (out / "notes.txt").write_text("mine")
    (out / "sub").mkdir()
    made.save(out, overwrite=True)
    left = {"generation.json", "lateral.png", "report.json", "report.txt", "notes.txt", "sub"}
    assert {path.name for path in out.iterdir()} == left
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_foreign_record_removes_nothing(made: Generation, tmp_path: Path) -> None:
    (tmp_path / "up.txt").write_text("mine")
    out = tmp_path / "out"
    out.mkdir()
    record = {"synthetic": True, "files": {"x": [{"file": "../up.txt"}]}}
    (out / "generation.json").write_text(json.dumps(record))
    made.save(out, overwrite=True)
    assert (tmp_path / "up.txt").read_text() == "mine"


def test_places_that_cannot_be_written(made: Generation, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        made.save(tmp_path / "file")
    with pytest.raises(OutputError, match="not a writable folder"):
        made.save(tmp_path / "file" / "below")


def test_a_write_that_fails_leaves_nothing(made: Generation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from xgem.modalities import get_modality

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(get_modality("report")), "write", fail)
    with pytest.raises(OutputError, match="No space left"):
        made.save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


# -------------------------------------------------------------------------------------------------- replay


@pytest.fixture
def saved(pipeline: XgemPipeline, tmp_path: Path) -> Path:
    """Samples of a batch: of two prompts of different lengths, with three samples each, in batches of four."""
    path = write_image(tmp_path / "cxr.png")
    items = [{"frontal": path, "report": TEXT}, {"report": "No acute cardiopulmonary abnormality. " * 3}]
    one, other = pipeline(items, "lateral", seed=[5, 6], num_samples=3, batch_size=4, **QUICK)
    one.save(tmp_path / "one")
    other.save(tmp_path / "other")
    return tmp_path


@pytest.mark.parametrize("name", ["one/lateral-000", "one/lateral-002", "other/lateral-000", "other/lateral-002"])
def test_replay_is_identical_byte_for_byte(pipeline: XgemPipeline, saved: Path, name: str) -> None:
    file = saved / f"{name}.png"
    given = {"frontal": saved / "cxr.png"} if name.startswith("one") else {}
    again = replay(file, inputs=given, model=pipeline.root, progress=False)
    assert again.identical
    (path,) = again.generation.save(saved / "again")
    assert path.name == file.name
    assert path.read_bytes() == file.read_bytes()


@pytest.mark.parametrize("greedy", [True, False])
def test_a_report_is_replayed_too(pipeline: XgemPipeline, tmp_path: Path, greedy: bool) -> None:
    path = write_image(tmp_path / "cxr.png")
    made = pipeline({"frontal": path}, "report", seed=5, num_samples=2, greedy=greedy, **QUICK)
    made.save(tmp_path / "out")
    again = replay(tmp_path / "out" / "report-001.txt", inputs={"frontal": path}, model=pipeline, progress=False)
    assert again.identical
    assert again.generation.report == [made.report[1]]


def test_a_replayed_file_can_be_replayed(pipeline: XgemPipeline, saved: Path) -> None:
    first = replay(saved / "other" / "lateral-001.png", model=pipeline, progress=False)
    first.generation.save(saved / "again")
    assert replay(saved / "again" / "lateral-001.png", model=pipeline, progress=False).identical


def test_inputs_are_looked_up_by_name(pipeline: XgemPipeline, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = saved / "one" / "lateral-000.png"
    with pytest.raises(InputError, match=r"input 'frontal' was 'cxr\.png', which is not found; give it \(--frontal\)"):
        replay(file, model=pipeline, progress=False)
    monkeypatch.chdir(saved)
    assert replay(file, model=pipeline, progress=False).identical


def test_the_shape_of_a_squashed_input_is_recorded_and_replayed(pipeline: XgemPipeline, tmp_path: Path) -> None:
    file = write_image(tmp_path / "f.png")
    results = {
        name: pipeline({"frontal": value}, "lateral", seed=3, **QUICK)
        for name, value in (("true", SquashedFile(str(file), 1.4)), ("stored", file))
    }
    results["true"].save(tmp_path / "out")
    assert results["true"].metadata["inputs"]["frontal"]["pixel_aspect"] == 1.4
    assert "pixel_aspect" not in results["stored"].metadata["inputs"]["frontal"]
    images = [np.asarray(result.lateral[0]) for result in results.values()]
    assert not np.array_equal(images[0], images[1])
    again = replay(tmp_path / "out/lateral.png", inputs={"frontal": file}, model=pipeline, progress=False)
    assert again.identical


def test_another_input_is_refused(pipeline: XgemPipeline, saved: Path) -> None:
    file = saved / "one" / "lateral-000.png"
    other = write_image(saved / "other.png", seed=9)
    with pytest.raises(InputError, match="input 'frontal' is not the recorded one"):
        replay(file, inputs={"frontal": other}, model=pipeline, progress=False)
    with pytest.raises(InputError, match="input 'report' is not the recorded one"):
        replay(file, inputs={"frontal": saved / "cxr.png", "report": "Other."}, model=pipeline, progress=False)
    with pytest.raises(InputError, match="was generated from report, not from 'frontal'"):
        replay(saved / "other" / "lateral-000.png", inputs={"frontal": other}, model=pipeline, progress=False)


def test_another_checkpoint_is_refused(pipeline: XgemPipeline, saved: Path) -> None:
    random_checkpoint(saved / "model", load_preset("debug"), seed=1)
    file = saved / "other" / "lateral-000.png"
    with pytest.raises(CheckpointError, match=f"hash {pipeline.hash}"):
        replay(file, model=saved / "model", progress=False)
    with pytest.raises(CheckpointError, match="'random', which is not found; give it as model"):
        replay(file, progress=False)


@pytest.fixture(scope="module")
def from_text(pipeline: XgemPipeline, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("text") / "out"
    return pipeline({"report": TEXT}, "lateral", seed=5, **QUICK).save(out)[0]


def alter(file: Path, **changes: Any) -> Path:
    with Image.open(file) as image:
        assert isinstance(image, PngImagePlugin.PngImageFile)
        values = {**json.loads(image.text["xgem"]), **changes}
        info = PngImagePlugin.PngInfo()
        info.add_itxt("xgem", json.dumps(values))
        image.save(file.with_name("altered.png"), pnginfo=info)
    return file.with_name("altered.png")


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": -1},
        {"seed": "x"},
        {"num_inference_steps": 0},
        {"together": {"frontal": {"guidance_scale": "much", "context_tokens": 3}}},
        {"together": {"frontal": {"guidance_scale": 1.0, "context_tokens": 10**9}}},
        {"together": {"ct": {"guidance_scale": 1.0, "context_tokens": 3}}},
        {"image": {"frontal": {"sha256": "0"}}},
        {"sampler": "euler"},
        {"output": "ct"},
        {"inputs": {"ct": {"sha256": "0", "origin": "x", "text": "x"}}},
        {"batch": {"size": 2, "position": 2}},
        {"batch": {"size": 10**9, "position": 0}},
        {"checkpoint": None},
        {"threads": 0},
    ],
    ids=lambda c: f"{next(iter(c))}",
)
def test_altered_metadata_are_refused(pipeline: XgemPipeline, from_text: Path, changes: dict[str, Any]) -> None:
    file = alter(from_text, **changes)
    with pytest.raises(InputError) as raised:
        replay(file, model=pipeline, progress=False)
    assert "\n" not in str(raised.value)


def test_a_recorded_device_that_is_not_here(pipeline: XgemPipeline, from_text: Path) -> None:
    file = alter(from_text, device="cuda:99")
    with pytest.raises(DeviceError, match="not available here"):
        replay(file, model=pipeline.root, progress=False)
    assert replay(file, model=pipeline.root, device="cpu", progress=False).identical


def test_another_seed_is_noticed(pipeline: XgemPipeline, from_text: Path) -> None:
    file = alter(from_text, seed=99)
    assert not replay(file, model=pipeline, progress=False).identical


def test_files_without_metadata(tmp_path: Path) -> None:
    plain = write_image(tmp_path / "plain.png")
    (tmp_path / "broken.png").write_bytes(plain.read_bytes()[:40])
    (tmp_path / "lone.txt").write_text("Clear lungs.")
    (tmp_path / "other.json").write_text("[]")
    for name, message in {
        "plain.png": "contains no xgem metadata",
        "broken.png": "metadata|PNG",
        "lone.txt": "json file next to it",
        "other.json": "has no metadata",
        "none.png": "no such file",
    }.items():
        with pytest.raises(InputError, match=message):
            read_metadata(tmp_path / name)
