"""``xgem train``: settings from the command line, the device, and training further from a checkpoint's weights."""

from __future__ import annotations

import signal
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import PartialState

from xgem.checkpoints.locate import ASSETS
from xgem.checkpoints.store import load_component, read_component_config, read_index
from xgem.cli import main
from xgem.configs.changes import with_stage_settings
from xgem.configs.preset import load_preset
from xgem.convert.random_init import random_checkpoint
from xgem.data.manifest import Manifest
from xgem.train import reid
from xgem.train.image_vae import ImageVAEStage
from xgem.train.initial import architecture
from xgem.train.loop import FINISHED, LoopOptions, learning_rate
from xgem.train.processes import together
from xgem.train.share import Share
from xgem.train.stages import planned, run
from xgem.types import ConfigError, DeviceError, InputError
from xgem.utils.hashing import module_hash

TUNE = "openi-256-tune"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, toy: Path, tmp_path: Path) -> Any:
    """Runs the command with what trains replaced: the presets that it was given, or its error."""
    seen: list[Any] = []
    monkeypatch.setattr("xgem.train.stages.run", lambda names, preset, *rest, **more: seen.append((names, preset)))
    monkeypatch.setattr("xgem.train.reid.run", lambda *rest, config, **more: seen.append(config))

    def ask(*arguments: str) -> tuple[int, Any]:
        seen.clear()
        code = main(["train", *arguments, "--data", str(toy), "--out", str(tmp_path / "out"), "--no-progress"])
        return code, seen[0] if seen else None

    return ask


def test_steps_and_settings_are_those_of_the_command(asked: Any) -> None:
    more = ["--steps", "7", "--set", "clip.batch_size=3", "--set", "clip.loss.labels=2", "--set", "report.patience=4"]
    code, (names, preset) = asked("all", "--preset", "debug", *more)
    debug = load_preset("debug")
    assert (code, names) == (0, planned(debug))
    assert {config.steps for config in preset.train.values()} == {7}
    clip = preset.train["clip"]
    assert (clip.batch_size, clip.loss, preset.train["report"].patience) == (3, {"labels": 2.0}, 4)
    assert clip.learning_rate == debug.train["clip"].learning_rate
    assert preset.components == debug.components
    _, (_, preset) = asked("clip", "--preset", "debug", "--steps", "7")
    assert (preset.train["clip"].steps, preset.train["report"]) == (7, debug.train["report"])  # of this stage alone
    _, (_, preset) = asked("all", "--preset", "debug")
    assert preset == debug


def test_settings_of_reid(asked: Any) -> None:
    debug, small = (reid.PRESETS[name].train for name in ("debug", "small"))
    assert debug is not None
    assert small is not None
    _, config = asked("reid", "--preset", "debug", "--steps", "5", "--set", "reid.learning_rate=1e-4")
    assert config == debug.model_copy(update={"steps": 5, "learning_rate": 1e-4})
    _, config = asked("reid", "--set", "reid.batch_size=2")
    assert config == small.model_copy(update={"batch_size": 2})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("clip.batch_sizes=3", "clip has no field 'batch_sizes', only steps, batch_size, learning_rate, "),
        ("clip.batch_size.x=3", "clip has no field 'batch_size.x'"),
        ("control.steps=3", "no stage to train 'control', only image-vae, image-decoder, clip, "),
        ("clip.steps=0", "steps: Input should be greater than or equal to 1 (got 0)"),
        ("clip.learning_rate=fast", "learning_rate: Input should be a valid number"),
        ("clip.loss.labels=many", "loss.labels: Input should be a valid number"),
        ("clip.loss={labels: 1, labels: 2}", "duplicate key 'labels'"),
        ("clip.steps", "expected NAME.FIELD=VALUE"),
        ("steps=3", "expected NAME.FIELD=VALUE"),
    ],
)
def test_a_setting_that_does_not_fit_is_one_line(
    asked: Any, setting: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert asked("all", "--preset", "debug", "--set", setting) == (2, None)
    error = capsys.readouterr().err
    assert error.startswith(f"xgem: error: --set {setting}: ")
    assert message in error
    assert error.count("\n") == 1


def test_settings_change_nothing_else() -> None:
    stages = load_preset("openi-256").train
    assert with_stage_settings(stages, []) == stages
    assert stages["joint"].loss == {"alone": 2000, "lowest": 400}
    changed = with_stage_settings(stages, ["joint.loss.lowest=0"])
    assert changed["joint"] == stages["joint"].model_copy(update={"loss": {"alone": 2000, "lowest": 0}})
    # What a run is resumed by holds no field but those of before
    assert (
        stages["clip"].model_dump_json()
        == with_stage_settings(stages, ["clip.batch_size=64"])["clip"].model_dump_json()
    )
    # Fields that are not recorded at their defaults can be set too
    adam = with_stage_settings(stages, ["clip.optimizer=adam", "clip.decayed=all"])["clip"]
    assert adam == stages["clip"].model_copy(update={"optimizer": "adam", "decayed": "all"})
    with pytest.raises(InputError, match="no stage to train"):
        with_stage_settings({}, ["clip.steps=3"])
    with pytest.raises(ConfigError, match="betas"):
        with_stage_settings(stages, ["clip.betas=[0.9]"])


def test_the_device_is_that_of_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    before = PartialState().device
    with together("cpu"):
        assert PartialState().device == torch.device("cpu")
    monkeypatch.setattr("xgem.train.processes.resolve_device", lambda name: torch.device("meta"))
    with together("meta"):
        assert PartialState().device == torch.device("meta")
    assert PartialState().device == before
    monkeypatch.undo()
    with pytest.raises(DeviceError, match="'cuda:99' is not available"), together("cuda:99"):
        pass
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DeviceError, match="leave it out"), together("cpu"):
        pass
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(DeviceError, match="2 processes were started that do not know of one another"), together():
        pass


# ------------------------------------------------------------------------------------------------------ fine-tuning


def test_the_preset_for_fine_tuning_takes_openi_256_further() -> None:
    tune, openi = load_preset(TUNE), load_preset("openi-256")
    assert planned(tune) == ("frontal", "lateral", "report", "joint")
    assert tune.model_copy(update={"name": openi.name, "description": openi.description, "train": openi.train}) == openi
    for name, config in tune.components.items():
        assert architecture(read_component_config(ASSETS / "openi-256", name)) == architecture(config)
    for name, config in tune.train.items():
        # Adam moves a weight by the learning rate at most, or little more, a step
        ours, theirs = (sum(learning_rate(c, step) for step in range(c.steps)) for c in (config, openi.train[name]))
        assert ours < 0.02 * theirs
        assert ours < 0.03
        assert config.warmup_steps < config.validate_every <= config.steps


def test_fine_tuning_starts_from_the_given_weights_and_stays_near_them(toy: Path, tmp_path: Path) -> None:
    random_checkpoint(tmp_path / "source", load_preset("debug"), seed=3)
    record = load_preset(TUNE).train["frontal"].model_dump(mode="json")
    train = dict.fromkeys(("frontal", "report"), record)
    (tmp_path / "tune.yaml").write_text(f"extends: debug\nname: tune\ntrain: {train}\n".replace("None", "null"))
    out = tmp_path / "out"
    options = ["--preset", str(tmp_path / "tune.yaml"), "--data", str(toy), "--out", str(out), "--no-progress"]
    few = ["--steps", "60", "--set", "frontal.batch_size=2", "--set", "report.batch_size=2", "--device", "cpu"]
    few += ["--set", "frontal.validate_every=60", "--set", "report.validate_every=60"]
    assert main(["train", "all", *options, *few, "--init", str(tmp_path / "source")]) == 0
    for name in read_index(tmp_path / "source").components:
        before, after = (load_component(root, name) for root in (tmp_path / "source", out))
        if name not in ("frontal", "report"):
            assert module_hash(before) == module_hash(after)
            continue
        old, new = (torch.cat([p.detach().flatten() for p in part.parameters()]) for part in (before, after))
        moved = float((new - old).norm() / old.norm())
        assert 1e-6 < moved < 0.05


def test_without_weights_to_start_from_the_way_out_is_named(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tune.yaml").write_text(
        "extends: debug\ntrain: {frontal: {steps: 1, batch_size: 1, learning_rate: 1}}\n"
    )
    options = ["--preset", str(tmp_path / "tune.yaml"), "--data", str(toy), "--out", str(tmp_path / "out")]
    assert main(["train", "all", *options, "--no-progress"]) == 1
    assert "train it first, or take it by --init from a checkpoint that has it" in capsys.readouterr().err


# ------------------------------------------------------------------------------------------------------ limited time


def test_minutes_count_from_the_start_of_the_command(
    monkeypatch: pytest.MonkeyPatch, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("xgem.train.stages.run", lambda names, preset, data, out, loop, **more: seen.append(loop.until))
    command = ["train", "clip", "--preset", "debug", "--data", str(toy), "--out", str(tmp_path), "--no-progress"]
    before = time.monotonic()
    assert main([*command, "--max-minutes", "2.5"]) == main(command) == 0
    assert 150 <= seen[0] - before < 160
    assert seen[1] is None
    assert main([*command, "--max-minutes", "0"]) == 2
    assert capsys.readouterr().err == "xgem: error: --max-minutes 0: expected more than 0\n"


def test_time_is_for_all_stages_together(toy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With no time at all each call takes one step: two for the first stage, then two for the second."""
    debug, manifest = load_preset("debug"), Manifest.read(toy)
    few = {"steps": 2, "batch_size": 2, "warmup_steps": 1}
    names = ("image-vae", "report-vae")
    preset = debug.model_copy(update={"train": {name: debug.train[name].model_copy(update=few) for name in names}})
    options = LoopOptions(resume=True, progress=False, tensorboard=False)
    run(names, preset, manifest, tmp_path / "whole", options)
    caplog.set_level("INFO", logger="xgem")
    finished: list[list[str]] = []
    for _ in range(4):
        run(names, preset, manifest, tmp_path / "broken", replace(options, until=0.0))
        finished.append([name for name in names if (tmp_path / "broken/training" / name / FINISHED).exists()])
        assert set(read_index(tmp_path / "broken").components) == {name.replace("-", "_") for name in finished[-1]}
    assert finished == [[], ["image-vae"], ["image-vae"], [*names]]
    assert "time is up: report-vae not started; --resume goes on" in caplog.messages
    for name in ("image_vae", "report_vae"):
        whole, broken = (load_component(tmp_path / root, name) for root in ("whole", "broken"))
        assert module_hash(whole) == module_hash(broken)


# ------------------------------------------------------------------------------------------------------ interrupted


@pytest.mark.parametrize("step", [1, 5])
def test_interrupted_and_resumed_it_ends_with_the_same_bits(
    step: int,
    toy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    """Ctrl-C sends SIGINT: here during a step before the first checkpoint, and one after it."""

    def command(out: str) -> list[str]:
        options = ["--preset", "debug", "--data", str(toy), "--out", str(tmp_path / out), "--no-progress", "--resume"]
        return ["train", "image-vae", *options, "--threads", "1"]

    # A shell that starts jobs in the background has them ignore SIGINT, and what they start too.
    request.addfinalizer(partial(signal.signal, signal.SIGINT, signal.getsignal(signal.SIGINT)))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    assert main(command("whole")) == 0
    original = ImageVAEStage.batch

    def pressed(stage: ImageVAEStage, share: Share) -> Any:
        if share.step == step:
            signal.raise_signal(signal.SIGINT)
        return original(stage, share)

    with monkeypatch.context() as patched:
        patched.setattr(ImageVAEStage, "batch", pressed)
        assert main(command("broken")) == 130
    assert capsys.readouterr().err.endswith("xgem: interrupted; the same command goes on from the last checkpoint\n")
    assert main(command("broken")) == 0
    for pattern in ("image_vae/*", "training/image-vae/checkpoints/step-00000012/*"):
        whole, broken = (
            {file.name: file.read_bytes() for file in (tmp_path / out).glob(pattern)} for out in ("whole", "broken")
        )
        assert len(whole) >= 2
        assert whole == broken
