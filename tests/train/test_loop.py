"""The loop on a stage of a few numbers: schedule, order, averaging, stopping, refusals, resuming to the same bits."""

from __future__ import annotations

import io
import json
import math
import resource
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xgem.checkpoints import training as checkpoint
from xgem.configs.preset import StageConfig
from xgem.train.averaging import average_
from xgem.train.logs import trim
from xgem.train.loop import FINISHED, LoopOptions, is_finished, learning_rate, train
from xgem.train.passes import _quick_attention
from xgem.train.share import Share
from xgem.train.stage import Stage, permuted
from xgem.types import CheckpointError, DataError, OutputError
from xgem.utils.random import mix

QUIET = LoopOptions(progress=False, tensorboard=False, log_every=1)
RESUME = replace(QUIET, resume=True)


class Killed(BaseException):
    """Ends a run as a signal would: nothing catches it."""


class Line(Stage):
    """Fits a line with dropout and noise; dies or goes astray at a step when told to."""

    name = "line"

    def __init__(self, *, kill_at: int | None = None, nan_at: int | None = None, seed: int = 0, **changes: Any) -> None:
        settings: dict[str, Any] = {
            "steps": 12, "batch_size": 4, "learning_rate": 0.05, "warmup_steps": 2, "validate_every": 4,
            "checkpoint_every": 3, "ema_decay": 0.9, "grad_clip": 100.0,
        }  # fmt: skip
        self.config, self.seed = StageConfig(**(settings | changes)), seed
        self.kill_at, self.nan_at = kill_at, nan_at
        torch.manual_seed(mix(seed, "weights"))
        self.module = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.validations: list[float] | None = None
        self.seen: list[int] = []

    @property
    def fresh(self) -> dict[str, nn.Module]:
        return {"line": self.module}

    def batch(self, share: Share) -> dict[str, Any]:
        if share.step == self.kill_at:
            raise Killed
        self.seen.append(share.step)
        x = torch.tensor(permuted(20, share.numbers, self.seed)).float()[:, None] / 20 * torch.tensor([1.0, -2.0, 0.5])
        return {"x": x + 0.1 * share.normal((3,)), "y": x.sum(dim=1, keepdim=True), "step": share.step}

    def loss(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        loss = (module(batch["x"]) - batch["y"]).square().mean()
        if batch["step"] == self.nan_at:
            loss = loss * float("nan")
        return loss, {"twice": 2 * loss.detach()}

    def validate(self, module: nn.Module) -> dict[str, float]:
        if self.validations:
            return {"loss": self.validations.pop(0)}
        x = torch.randn(16, 3)
        return {"loss": float((module(x) - x.sum(dim=1, keepdim=True)).square().mean())}

    def sheet(self, module: nn.Module) -> str:
        return "a sheet"

    def finish(self, module: nn.Module, root: Path) -> None:
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, root / "final.safetensors")


def log_of(root: Path) -> list[dict[str, float]]:
    lines = (root / "training/line/log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "steps_per_s"} for line in lines]


# ------------------------------------------------------------------------------------------------------- resuming


@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("steps", [(2,), (3,), (7, 8), (1, 5, 11)], ids=lambda steps: "-".join(map(str, steps)))
def test_killed_and_resumed_ends_with_the_same_bits(
    steps: tuple[int, ...], micro_batch_size: int | None, tmp_path: Path
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    quiet, resume = (replace(options, micro_batch_size=micro_batch_size) for options in (QUIET, RESUME))
    expected = train(Line(), whole, quiet)
    for step in steps:
        with pytest.raises(Killed):
            train(Line(kill_at=step), broken, resume)
    assert train(Line(), broken, resume) == expected
    assert (broken / "final.safetensors").read_bytes() == (whole / "final.safetensors").read_bytes()
    assert log_of(broken) == log_of(whole)
    for name in ("model", "ema", "optimizer"):
        file = f"training/line/checkpoints/step-00000012/{name}.safetensors"
        assert (broken / file).read_bytes() == (whole / file).read_bytes()


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    train(Line(), tmp_path, QUIET)
    before = (tmp_path / "final.safetensors").read_bytes()
    stage = Line()
    state = train(stage, tmp_path, RESUME)
    assert state.step == 12
    assert stage.seen == []
    assert (tmp_path / "final.safetensors").read_bytes() == before


def test_starting_over_needs_resume_or_another_folder(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(Line(kill_at=7), tmp_path, QUIET)
    with pytest.raises(CheckpointError, match=r"step-00000006: continue it with --resume") as caught:
        train(Line(), tmp_path, QUIET)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"learning_rate": 0.01}, {"steps": 20}, {"batch_size": 5}, {"seed": 1}], ids=str)
def test_other_settings_do_not_resume(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(Line(kill_at=7), tmp_path, QUIET)
    with pytest.raises(CheckpointError, match="other settings or data"):
        train(Line(**change), tmp_path, RESUME)


def test_what_a_killed_save_left_behind_is_no_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "training/line/checkpoints"
    (folder / ".step-00000009.123").mkdir(parents=True)
    assert checkpoint.latest(folder) is None
    train(Line(), tmp_path, QUIET)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000009", "step-00000012"]


# --------------------------------------------------------------------------------------------------- limited time


def test_runs_out_of_time_end_with_the_same_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A run whose time is always up takes one step a call, keeps it, and says how to go on."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    expected = train(Line(), whole, QUIET)
    caplog.set_level("INFO", logger="xgem")
    for step in range(1, 12):
        assert train(Line(), broken, replace(RESUME, until=0.0)).step == step
        assert "line: time is up at step" in caplog.messages[-1]
        assert not (broken / "final.safetensors").exists()
        assert not (broken / "training/line" / FINISHED).exists()
    assert caplog.messages[-1] == "line: time is up at step 11 of 12; --resume goes on"
    assert train(Line(), broken, replace(RESUME, until=0.0)) == expected
    for name in ("final.safetensors", "training/line/finished"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()
    assert log_of(broken) == log_of(whole)


def test_a_run_with_time_to_spare_is_a_whole_one(tmp_path: Path) -> None:
    state = train(Line(), tmp_path, replace(QUIET, until=time.monotonic() + 600))
    assert is_finished(state, Line().config)
    assert (tmp_path / "training/line" / FINISHED).read_text(encoding="utf-8") == "12\n"


def test_the_stop_rule_finishes_a_run_whose_time_is_up(tmp_path: Path) -> None:
    settings = {"validate_every": 1, "steps": 40, "patience": 1}
    for losses in ([1.0], [2.0]):
        stage = Line(**settings)
        stage.validations = losses
        state = train(stage, tmp_path, replace(RESUME, until=0.0))
    assert (state.step, state.best_step, state.stopped) == (2, 1, True)
    assert (tmp_path / "training/line" / FINISHED).exists()


# ---------------------------------------------------------------------------------------------- stopping and losing


def test_a_loss_that_is_not_finite_stops_before_a_checkpoint_holds_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line: loss is nan at step 6"):
        train(Line(nan_at=4), tmp_path, replace(QUIET, log_every=100))
    found = sorted((tmp_path / "training/line/checkpoints").iterdir())
    assert [folder.name for folder in found] == ["step-00000003"]
    assert all(torch.isfinite(value).all() for value in load_file(found[0] / "model.safetensors").values())
    assert not (tmp_path / "final.safetensors").exists()


def test_the_stop_rule_keeps_the_best_weights(tmp_path: Path) -> None:
    short, long = tmp_path / "short", tmp_path / "long"
    for root, extra in ((short, {}), (long, {"steps": 40, "patience": 2})):
        root.mkdir()
        stage = Line(validate_every=4, final_lr_fraction=1.0, **({"steps": 8} | extra))
        stage.validations = [3.0, 1.0, 2.0, 2.0, 0.0]
        state = train(stage, root, QUIET)
    assert (state.step, state.best_step, state.best_loss, state.stopped) == (16, 8, 1.0, True)
    ours, best = (load_file(root / "final.safetensors") for root in (long, short))
    for name, value in best.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=0)
    again = train(Line(validate_every=4, final_lr_fraction=1.0, steps=40, patience=2), long, RESUME)
    assert again == state


# --------------------------------------------------------------------------------------------------------- logging


def test_logs_and_sheets(tmp_path: Path) -> None:
    train(Line(), tmp_path, QUIET)
    log = log_of(tmp_path)
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, 13))
    assert [entry["step"] for entry in log if "val/loss" in entry] == [4, 8, 12]
    entry = next(entry for entry in log if "loss" in entry)
    assert entry["twice"] == pytest.approx(2 * entry["loss"])
    assert entry["grad_norm"] > 0
    assert (tmp_path / "training/line/sheet-00000008.txt").read_text(encoding="utf-8") == "a sheet"


def test_log_lines_beyond_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    trim(path, 3)
    assert not path.exists()
    lines = ['{"step": 1}', '{"step": 3}', '{"step": 4}', '{"step": 3, "val/loss": 1}', '{"step": 5, "lo']
    path.write_text("\n".join(lines), encoding="utf-8")
    trim(path, 3)
    assert path.read_text(encoding="utf-8") == '{"step": 1}\n{"step": 3}\n{"step": 3, "val/loss": 1}\n'


def test_tensorboard_events_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(Line(steps=2), tmp_path, replace(QUIET, tensorboard=True))
    assert list((tmp_path / "training/line/tensorboard").iterdir())


# ------------------------------------------------------------------------------------------------------ arithmetic


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_parts_of_a_batch_give_the_step_of_the_whole(most: int, tmp_path: Path) -> None:
    for name, options in (("one", QUIET), ("parts", replace(QUIET, micro_batch_size=most))):
        (tmp_path / name).mkdir()
        stage = Line(steps=5, batch_size=8)
        stage.module[1].p = 0.0  # type: ignore[union-attr]  # dropout is drawn by part
        train(stage, tmp_path / name, options)
        assert len(stage.seen) == 5 * {"one": 1, "parts": {1: 8, 2: 4, 3: 4, 4: 2}[most]}[name]
    one, parts = (load_file(tmp_path / name / "final.safetensors") for name in ("one", "parts"))
    for key, value in one.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-5)
    for first, second in zip(*(log_of(tmp_path / name) for name in ("one", "parts")), strict=True):
        assert second == pytest.approx(first, rel=1e-4)


def test_learning_rate_schedule() -> None:
    config = StageConfig(steps=100, batch_size=1, learning_rate=2.0, warmup_steps=10, final_lr_fraction=0.1)
    rates = [learning_rate(config, step) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == rates[10] == 2.0
    assert rates[55] == pytest.approx(2.0 * (0.1 + 0.9 / 2))
    assert rates[100] == pytest.approx(0.2)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    without = StageConfig(steps=4, batch_size=1, learning_rate=1.0, warmup_steps=0)
    assert [learning_rate(without, step) for step in (0, 2, 4)] == pytest.approx([1.0, 0.5, 0.0])


@given(st.integers(1, 12), st.integers(0, 40), st.integers(1, 30), st.integers(0, 99))
def test_the_stream_visits_everything_once_an_epoch(n: int, start: int, count: int, seed: int) -> None:
    stream = permuted(n, range(start + count), seed)
    assert permuted(n, range(start, start + count), seed) == stream[start:]  # any part is the same whoever asks for it
    for epoch in range(len(stream) // n):
        assert sorted(stream[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_epochs_and_seeds_differ() -> None:
    assert permuted(50, range(50), 1) != permuted(50, range(50, 100), 1)
    assert permuted(50, range(50), 1) != permuted(50, range(50), 2)
    assert mix(1, "a") == mix(1, "a") != mix("1a") != mix(2, "a")
    assert 0 <= mix("x") < 2**63


def test_averaging_warms_up_to_its_decay() -> None:
    for count, decay in ((0, 0.1), (8, 0.5), (10_000, 0.99)):
        averaged, current = [torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 0.0])]
        average_(averaged, current, 0.99, count)
        expected = torch.tensor([1.0, 2.0]) * decay + torch.tensor([3.0, 0.0]) * (1 - decay)
        torch.testing.assert_close(averaged[0], expected)


def test_final_weights_are_the_averaged_ones(tmp_path: Path) -> None:
    train(Line(), tmp_path, QUIET)
    last = tmp_path / "training/line/checkpoints/step-00000012"
    final = load_file(tmp_path / "final.safetensors")
    model, averaged = (load_file(last / f"{name}.safetensors") for name in ("model", "ema"))
    for name, value in final.items():
        assert torch.equal(value, averaged[f"module.{name}"])
        assert not torch.equal(value, model[name])
    assert math.isfinite(log_of(tmp_path)[-1]["val/loss"])


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_attention_in_training_is_the_same_attention(precision: str) -> None:
    query, key, value = torch.randn(3, 2, 4, 9, 8).unbind()
    seen = []
    for context in (nullcontext(), _quick_attention(torch.device("cpu"), precision)):
        inputs = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
        with context, torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            out = nn.functional.scaled_dot_product_attention(inputs[0], inputs[1], inputs[2])
            out.float().square().sum().backward()
        seen.append([out, *(tensor.grad for tensor in inputs)])
    for fused, plain in zip(*seen, strict=True):
        torch.testing.assert_close(plain, fused, rtol=0, atol=0 if precision == "no" else 0.05)
    assert torch.backends.cuda.flash_sdp_enabled()
    assert not torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()


# ------------------------------------------------------------------------------------------------------- full disk


@pytest.mark.parametrize("moment", ["weights", "log"])
def test_a_full_disk_is_one_line_and_the_checkpoint_before_it_stays(moment: str, tmp_path: Path) -> None:
    """The system refuses files beyond a size, as a full disk does: safetensors and Python write for real."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    train(Line(), whole, QUIET)
    with pytest.raises(Killed):
        train(Line(kill_at=7), broken, QUIET)
    folder = broken / "training/line/checkpoints"
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    _, most = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Of a log, the lines of before still fit; and not one byte more
    room = (broken / "training/line/log.jsonl").stat().st_size if moment == "log" else 1000
    if moment == "weights":
        (broken / "training/line/log.jsonl").unlink()
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, most))
    try:
        with pytest.raises(OutputError, match=r"cannot be written .*File too large.*: make room") as caught:
            train(Line(), broken, replace(RESUME, log_every=1 if moment == "log" else 100))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(caught.value)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    assert [path.name for path in sorted(folder.iterdir())] == ["step-00000003", "step-00000006"]
    assert train(Line(), broken, RESUME).step == 12
    assert (broken / "final.safetensors").read_bytes() == (whole / "final.safetensors").read_bytes()


def test_sheets_are_shown_in_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    class Drawn(Line):
        def sheet(self, module: nn.Module) -> Any:
            return Image.fromarray(np.full((6, 9), 77, np.uint8))

    for kind in (Line, Drawn):
        (tmp_path / kind.__name__).mkdir()
        train(kind(), tmp_path / kind.__name__, replace(QUIET, tensorboard=True))
    written, drawn = (
        accumulator.EventAccumulator(str(tmp_path / name / "training/line/tensorboard")).Reload()
        for name in ("Line", "Drawn")
    )
    (shown, *_) = images = drawn.Images("sheet")
    assert [image.step for image in images] == [4, 8, 12]
    assert np.asarray(Image.open(io.BytesIO(shown.encoded_image_string)).convert("L")).tolist() == [[77] * 9] * 6
    (text, *_) = written.Tensors("sheet/text_summary")
    assert text.step == 4
    assert b"a sheet" in text.tensor_proto.string_val[0]
    assert len(drawn.Scalars("loss")) == 12
