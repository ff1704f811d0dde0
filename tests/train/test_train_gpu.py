"""The recipe for one GPU: order of the stages, calls that go on, settings that stay, checkpoints in pieces."""

from __future__ import annotations

import importlib.util
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from xgem.checkpoints.store import load_component, read_index
from xgem.configs.preset import load_preset
from xgem.convert.random_init import random_checkpoint
from xgem.train.stages import planned


def script(project: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"script_{name}", project / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def recipe(project: Path) -> Any:
    return script(project, "train_gpu")


class Child:
    """What stands in for a stage's process; one that is given more polls ends later."""

    def __init__(self, done: Path | None, polls: int = 1, status: int = 0) -> None:
        self.done, self.polls, self.returncode = done, polls, status

    def poll(self) -> int | None:
        self.polls -= 1
        if self.polls >= 0:
            return None
        if self.done is not None:
            self.done.touch()
        return self.returncode


def call(recipe: Any, monkeypatch: pytest.MonkeyPatch, out: Path, child: Any, *more: str) -> tuple[int, list[str]]:
    """The status of a call, and the stages that it started."""
    started: list[str] = []

    def start(stage: str, command: list[str], root: Path) -> Any:
        assert command[command.index("--preset") + 1] == str(out / "preset.yaml")
        assert "--resume" in command
        for need in recipe.NEEDS[stage]:
            assert recipe.finished(out, need), f"{stage} started before {need}"
        started.append(stage)
        folder = root / "training" / stage
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "output.log").write_text("a\nlast line\n")
        return child(stage, folder / "finished")

    monkeypatch.setattr(recipe, "start", start)
    words = ["--preset", "debug", "--data", "m.parquet", "--out", str(out), "--poll", "0", *more]
    return recipe.main(words), started


def test_stages_start_when_all_that_they_build_on_is_finished(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = {"clip": 9, "image-decoder": 5}
    status, started = call(
        recipe, monkeypatch, tmp_path, lambda stage, done: Child(done, slow.get(stage, 1)), "--jobs", "3"
    )
    assert status == 0
    assert sorted(started) == sorted(planned(load_preset("debug"))) == sorted(recipe.NEEDS)
    assert "all stages are finished" in capsys.readouterr().out
    assert call(recipe, monkeypatch, tmp_path, lambda stage, done: Child(done)) == (0, [])  # nothing is left to do


def test_a_call_that_runs_out_of_time_starts_no_stage_twice(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = {"image-vae", "clip", "report-vae"}
    status, started = call(recipe, monkeypatch, tmp_path, lambda stage, done: Child(None))
    assert (status, set(started)) == (0, first)
    assert "clip: stopped at step 0" in capsys.readouterr().out
    status, started = call(recipe, monkeypatch, tmp_path, lambda stage, done: Child(done))
    assert (status, len(started)) == (0, 8)
    assert call(recipe, monkeypatch, tmp_path / "new", lambda stage, done: Child(done), "--minutes", "0.1") == (0, [])


def test_a_stage_that_fails_is_told_and_starts_no_other(
    recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, started = call(recipe, monkeypatch, tmp_path, lambda stage, done: Child(done, status=int(stage == "clip")))
    assert status == 1
    assert not {"frontal", "lateral", "report", "joint"} & set(started)
    assert "clip: failed with status 1:\na\nlast line" in capsys.readouterr().out


def test_settings_are_scaled_and_stay(recipe: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    preset = load_preset("openi-256-gpu")
    half = recipe.scaled(preset, steps=None, scale=0.5, batch=None)
    assert half["clip"]["steps"] == preset.train["clip"].steps // 2
    assert half["clip"]["warmup_steps"] == preset.train["clip"].warmup_steps // 2
    assert half["joint"]["loss"]["alone"] == preset.train["joint"].loss["alone"] / 2
    few = recipe.scaled(preset, steps=20, scale=1.0, batch=2)
    assert {(one["steps"], one["batch_size"]) for one in few.values()} == {(20, 2)}
    file = recipe.settle("openi-256-gpu", tmp_path, half)
    made = load_preset(file)
    assert (made.name, made.components) == (preset.name, preset.components)
    assert made.train["joint"].steps == half["joint"]["steps"]
    assert recipe.settle("openi-256-gpu", tmp_path, half) == file
    with pytest.raises(SystemExit, match="a run with other settings"):
        recipe.settle("openi-256-gpu", tmp_path, few)


def test_speeds_give_the_scale(recipe: Any, tmp_path: Path) -> None:
    preset = load_preset("debug")
    for stage in recipe.NEEDS:
        work = tmp_path / "training" / stage
        (work / "checkpoints/step-00000003").mkdir(parents=True)
        lines = [{"step": step, "steps_per_s": rate} for step, rate in ((1, 0.01), (2, 0.2), (3, 0.2))]
        (work / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    train = recipe.scaled(preset, steps=None, scale=1.0, batch=None)
    text = recipe.report(tmp_path, list(recipe.NEEDS), preset, train, 2.0)
    # Four stages of 12 steps at 0.2 a second stand one behind the other: a minute each
    assert "take 4.0 minutes" in text
    assert (tmp_path / "scale").read_text() == "0.500\n"
    assert any(line.split() == ["joint", "3", "12", "0.20", "0.8"] for line in text.splitlines())


def test_the_gpu_preset_is_openi_256_trained_otherwise() -> None:
    gpu, openi = load_preset("openi-256-gpu"), load_preset("openi-256")
    assert gpu.model_copy(update={"name": openi.name, "description": openi.description, "train": openi.train}) == openi
    assert planned(gpu) == planned(openi)


@pytest.mark.parametrize("words", [["train-gpu", "STEPS=20", "BATCH=2"], ["train-gpu-pieces"], ["train-gpu-join"]])
def test_make_calls_the_scripts_as_they_are(words: list[str], project: Path, recipe: Any, tmp_path: Path) -> None:
    command = ["make", "-n", "--no-print-directory", *words, "GPU_PYTHON=python3", f"RUN={tmp_path}"]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=60, check=True)
    (line,) = done.stdout.replace("\\\n", " ").splitlines()
    python, file, *rest = [word.strip('"') for word in line.split()]
    assert (python, (project / file).is_file()) == ("python3", True)
    if words[0] == "train-gpu":
        arguments = recipe.arguments_of(rest)
        assert (arguments.steps, arguments.batch, arguments.out) == (20, 2, tmp_path)
        assert arguments.preset == "openi-256-gpu"
    else:
        assert rest[0] == {"train-gpu-pieces": "split", "train-gpu-join": "join"}[words[0]]
        assert str(tmp_path) in rest


def test_pieces_are_the_checkpoint_again(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pieces = script(project, "pieces")
    run, out = tmp_path / "run", tmp_path / "pieces"
    random_checkpoint(run, load_preset("debug"), seed=3)
    (run / "training/clip/checkpoints").mkdir(parents=True)
    for name in ("finished", "log.jsonl", "checkpoints/state"):
        (run / "training/clip" / name).write_text("12\n")
    (run / "preset.yaml").write_text("extends: debug\n")
    assert pieces.main(["split", str(run), str(out), "--megabytes", "0.05", "--most", "100"]) == 0
    files = sorted(out.iterdir())
    assert len(files) > 3
    assert all(file.stat().st_size <= 0.05 * 2**20 for file in files)
    joined = tmp_path / "joined"
    assert pieces.main(["join", str(out), str(joined)]) == 0
    assert read_index(joined).preset == read_index(run).preset
    for name in read_index(run).components:
        for key, value in load_component(run, name).state_dict().items():
            half = load_component(joined, name).state_dict()[key]
            assert torch.equal(half, value.half().float() if value.is_floating_point() else value)
    assert (joined / "training/clip/finished").is_file()
    assert (joined / "preset.yaml").is_file()
    assert not (joined / "training/clip/checkpoints").exists()
    with pytest.raises(SystemExit, match="more than 3 files"):
        pieces.split(run, tmp_path / "few", size=50_000, most=3)
    files[1].write_bytes(files[1].read_bytes()[:-1] + b"?")
    with pytest.raises(SystemExit, match="part-"):
        pieces.join(out, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.slow
def test_stages_train_side_by_side_and_go_on(recipe: Any, toy: Path, tmp_path: Path) -> None:
    (tmp_path / "two.yaml").write_text(
        "extends: debug\ntrain: {image-vae: &s {steps: 6, batch_size: 2, learning_rate: 1.0e-3, warmup_steps: 1, "
        "checkpoint_every: 2, validate_every: 6}, image-decoder: *s, report-vae: *s}\n"
    )
    words = ["--preset", str(tmp_path / "two.yaml"), "--data", str(toy), "--out", str(tmp_path / "run")]
    words += ["--device", "cpu", "--precision", "no", "--jobs", "2", "--minutes", "8"]
    assert recipe.main(words) == 0
    assert all(recipe.finished(tmp_path / "run", stage) for stage in ("image-vae", "image-decoder", "report-vae"))
    assert {"image_vae", "report_vae"} <= set(read_index(tmp_path / "run").components)
