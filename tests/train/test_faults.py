"""What goes wrong in long trainings: harmed checkpoints, two runs in one folder, signals of a scheduler."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.test_loop import QUIET, RESUME, Killed, Line, log_of
from xgem.checkpoints import training as checkpoint
from xgem.train.loop import train
from xgem.types import CheckpointError, ConfigError, DeviceError, OutputError, StoppedError


@pytest.mark.parametrize("harm", ["truncated", "altered", "missing", "state"])
def test_a_harmed_checkpoint_is_put_aside_for_the_one_before(
    harm: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = train(Line(), whole, QUIET)
    with pytest.raises(Killed):
        train(Line(kill_at=7), broken, QUIET)
    folder = broken / "training/line/checkpoints"
    weights = folder / "step-00000006/model.safetensors"
    content = weights.read_bytes()
    if harm == "truncated":
        weights.write_bytes(content[:-5])
    elif harm == "altered":
        weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    elif harm == "missing":
        weights.unlink()
    else:
        (folder / "step-00000006/state.json").write_text("{}")
    assert train(Line(), broken, RESUME) == expected
    assert [record.getMessage().split(" cannot")[0] for record in caplog.records if record.levelname == "WARNING"] == [
        f"checkpoint {folder / 'step-00000006'}"
    ]
    assert (folder / "damaged-step-00000006").is_dir()
    assert (broken / "final.safetensors").read_bytes() == (whole / "final.safetensors").read_bytes()
    assert log_of(broken) == log_of(whole)


def test_without_a_whole_checkpoint_nothing_is_trained_anew(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(Line(kill_at=7), tmp_path, QUIET)
    for weights in tmp_path.glob("training/line/checkpoints/*/model.safetensors"):
        weights.write_bytes(b"")
    with pytest.raises(CheckpointError, match="no checkpoint is whole"):
        train(Line(), tmp_path, RESUME)
    assert len(list(tmp_path.glob("training/line/checkpoints/damaged-step-*"))) == 2


def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    stage = Line()
    loss, entered = stage.loss, []

    def second(module: Any, batch: Any) -> Any:
        if not entered:
            entered.append(True)
            with pytest.raises(OutputError, match=r"another run is training here; .* torchrun"):
                train(Line(), tmp_path, RESUME)
        return loss(module, batch)

    stage.loss = second  # type: ignore[method-assign]
    assert train(stage, tmp_path, QUIET).step == 12
    assert entered


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGUSR2"])
def test_a_signal_ends_a_run_with_a_checkpoint_and_takes_effect_then(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    expected = train(Line(), whole, QUIET)
    caplog.set_level("INFO", logger="xgem")
    number, came = signal.Signals[name], []
    stage = Line()
    loss = stage.loss

    def at_step_5(module: Any, batch: Any) -> Any:
        if not came and len(stage.seen) == 5:
            signal.raise_signal(number)
            assert came == []
        return loss(module, batch)

    stage.loss = at_step_5  # type: ignore[method-assign]
    before = signal.signal(number, lambda *_: came.append(checkpoint.latest(broken / "training/line/checkpoints")))
    try:
        with pytest.raises(
            StoppedError, match=rf"^line: stopped by {name} at step 5 of 12; --resume goes on$"
        ) as caught:
            train(stage, broken, QUIET)
    finally:
        signal.signal(number, before)
    assert [one.name for one in came if one] == ["step-00000005"]
    assert caplog.messages[-1] == str(caught.value)
    assert train(Line(), broken, RESUME) == expected
    assert (broken / "final.safetensors").read_bytes() == (whole / "final.safetensors").read_bytes()
    assert log_of(broken) == log_of(whole)


def test_one_process_trains_with_one_precision_after_another(tmp_path: Path) -> None:
    ends = {name: train(Line(), tmp_path / name, replace(QUIET, precision=name)).step for name in ("no", "bf16")}
    assert ends == {"no": 12, "bf16": 12}


def test_parts_have_no_loss_scale(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="fp16 has a loss scale that parts do not share: use bf16 or no"):
        train(Line(), tmp_path, replace(QUIET, sharding="full", precision="fp16"))


def test_where_memory_runs_out_a_batch_is_divided(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The same step goes on with fewer samples at once, to the same end as with that many from the start."""
    small, found = tmp_path / "small", tmp_path / "found"
    train(Line(), small, replace(QUIET, micro_batch_size=1))
    for stage, most in ((Line(), 3), (Line(seed=1), 0)):
        loss = stage.loss

        def limited(module: Any, batch: Any, loss: Any = loss, most: int = most) -> Any:
            if len(batch["x"]) > most - (batch["step"] >= 5):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return loss(module, batch)

        stage.loss = limited  # type: ignore[method-assign]
        if most:
            train(stage, found, QUIET)
            continue
        with pytest.raises(DeviceError, match="line: memory runs out with one sample at once"):
            train(stage, tmp_path / "never", QUIET)
    said = "line: memory runs out with {} samples at once (CUDA out of memory): going on with {}"
    assert [one for one in caplog.messages if "runs out" in one][:1] == [said.format(4, 2)]
    assert (found / "training/line/micro-batch-size").read_text() == "2\n"
    assert (found / "final.safetensors").is_file()
