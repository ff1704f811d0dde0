"""From a checkpoint to a pipeline: what is loaded when, what is refused, devices and number formats."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.pipeline.conftest import NORMAL, QUICK, pixels, radiograph, same
from xgem.pipeline.pipeline import XgemPipeline
from xgem.types import CheckpointError, DeviceError, InputError, OutputError


def test_only_what_a_request_needs_is_loaded(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "part")
    for name in ("text_encoder", "frontal", "report", "report_vae"):
        shutil.rmtree(tmp_path / "part" / name)
    part = XgemPipeline.from_pretrained(tmp_path / "part")
    part({"frontal": radiograph()}, "lateral", seed=1, **QUICK)
    with pytest.raises(CheckpointError, match="text_encoder"):
        part({"report": NORMAL}, "lateral", seed=1, **QUICK)
    with pytest.raises(CheckpointError, match="report"):
        part({"frontal": radiograph()}, "report", seed=1, **QUICK)


def test_components_are_read_once(checkpoint: Path) -> None:
    pipe = XgemPipeline.from_pretrained(checkpoint)
    assert pipe.component("image_vae") is pipe.component("image_vae")
    kept = pipe.component("image_vae")
    pipe.to("cpu")
    assert pipe.component("image_vae") is kept
    pipe.to(dtype="bfloat16")
    assert next(pipe.component("image_vae").parameters()).dtype == torch.bfloat16
    pipe.to(dtype="float32")
    for key, value in kept.state_dict().items():
        torch.testing.assert_close(pipe.component("image_vae").state_dict()[key], value, rtol=0, atol=0)


def test_bfloat16_runs_and_is_near(pipeline: XgemPipeline, checkpoint: Path) -> None:
    made = XgemPipeline.from_pretrained(checkpoint, dtype="bfloat16")({}, ["frontal", "report"], seed=1, **QUICK)
    assert made.metadata["dtype"] == "bfloat16"
    reference = pipeline({}, "frontal", seed=1, **QUICK)
    assert np.abs(pixels(made.frontal[0]) - pixels(reference.frontal[0])).mean() < 0.05


@pytest.mark.parametrize("stage", ["missing", "truncated", "swapped"])
def test_a_harmed_checkpoint_makes_nothing(checkpoint: Path, tmp_path: Path, stage: str) -> None:
    root = tmp_path / "harmed"
    shutil.copytree(checkpoint, root)
    weights = root / "lateral" / "model.safetensors"
    if stage == "missing":
        weights.unlink()
    elif stage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1])
    else:
        shutil.copyfile(root / "frontal" / "model.safetensors", weights)
    with pytest.raises(CheckpointError, match=r"lateral/model\.safetensors"):
        XgemPipeline.from_pretrained(root)({"frontal": radiograph()}, "lateral", seed=1, **QUICK)


def test_an_index_whose_preset_is_not_valid(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "bad")
    index = json.loads((tmp_path / "bad" / "model_index.json").read_text())
    index["preset"]["sampling"]["sampler"] = "euler"
    (tmp_path / "bad" / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"sampling\.sampler"):
        XgemPipeline.from_pretrained(tmp_path / "bad")


def test_save_pretrained_gives_the_same_pipeline(pipeline: XgemPipeline, tmp_path: Path) -> None:
    pipeline.save_pretrained(tmp_path / "saved")
    again = XgemPipeline.from_pretrained(tmp_path / "saved")
    assert again.hash == pipeline.hash
    one, other = (pipe({}, "lateral", seed=1, **QUICK).lateral[0] for pipe in (pipeline, again))
    assert same(one, other)
    with pytest.raises(OutputError, match="not an empty folder"):
        pipeline.save_pretrained(tmp_path / "saved")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("no-such-model", "neither a folder nor a hub id"),
        ("./no/such/folder", "neither a folder nor a hub id"),
        (Path("owner/name"), "neither a folder nor a hub id"),
        ("owner/name", "no such local folder, not in the local cache"),
    ],
)
def test_models_that_are_not_there(model: Any, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=message) as raised:
        XgemPipeline.from_pretrained(model)
    assert "\n" not in str(raised.value)


def test_a_hub_id_is_fetched_as_safetensors_and_json_only(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def fetch(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(checkpoint)

    monkeypatch.setattr("huggingface_hub.snapshot_download", fetch)
    pipe = XgemPipeline.from_pretrained("owner/name", revision="v1")
    assert pipe.name == "owner/name@v1"
    assert asked == {
        "name": "owner/name",
        "revision": "v1",
        "allow_patterns": ["*.safetensors", "*.json", "*.md", "*.txt"],
    }
    with pytest.raises(InputError, match="not a hub id"):
        XgemPipeline.from_pretrained(checkpoint, revision="v1")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:99"}, "not available here, expected one of: .*cpu"),
        ({"device": "toaster"}, "not known, expected one of: .*cpu"),
        ({"device": "meta"}, "not available here"),
        ({"device": "cpu", "dtype": "float16"}, "not available on the cpu"),
        ({"device": "cpu", "dtype": "float8"}, "expected one of: float32, bfloat16, float16"),
        ({"device": "cpu", "dtype": torch.int8}, "expected one of: float32, bfloat16, float16"),
    ],
)
def test_devices_and_dtypes_that_are_not_there(pipeline: XgemPipeline, options: dict[str, Any], message: str) -> None:
    for ask in (
        lambda: XgemPipeline.from_pretrained(pipeline.root, **options),
        lambda: pipeline({}, "report", **QUICK, **options),
    ):
        with pytest.raises(DeviceError, match=message):
            ask()
    assert (str(pipeline.device), pipeline.dtype) == ("cpu", torch.float32)


@pytest.mark.gpu
def test_a_gpu_makes_nearly_what_the_cpu_makes(pipeline: XgemPipeline, checkpoint: Path) -> None:
    options: dict[str, Any] = {**QUICK, "output_type": "np", "seed": 1}
    on_gpu = XgemPipeline.from_pretrained(checkpoint, device="cuda")({"report": NORMAL}, "frontal", **options)
    on_cpu = pipeline({"report": NORMAL}, "frontal", **options)
    np.testing.assert_allclose(on_gpu.frontal[0], on_cpu.frontal[0], atol=0.02)
