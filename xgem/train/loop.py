"""The training loop, the same for every stage.

Random numbers and data order are functions of (seed, step, rank): the loop reseeds at every step, so that a resumed
run equals an unbroken one (bitwise on a CPU) without any random state on disk.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from PIL import Image
from pydantic import BaseModel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel

from xgem.checkpoints import training as checkpoint
from xgem.checkpoints.training import TrainState
from xgem.configs.preset import StageConfig
from xgem.types import CheckpointError, ConfigError, DataError
from xgem.utils.random import mix

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopOptions:
    """How to run, as opposed to what to train. None of these changes the result of a CPU run, except ``precision``."""

    resume: bool = False
    compile: bool = False
    precision: str = "no"
    progress: bool = True
    log_every: int = 20
    tensorboard: bool = True


class Stage(ABC):
    """One thing to train. ``module`` is what is optimised; a stage knows its data and its loss, not the loop."""

    name: str
    module: nn.Module
    config: StageConfig
    seed: int
    settings: tuple[BaseModel, ...] = ()
    """Configurations of the components that take part: with them a run is another."""
    origin: str = ""
    """Hash of the weights that training starts from; empty where they are fresh."""

    @property
    @abstractmethod
    def fresh(self) -> dict[str, nn.Module]:
        """The components that start with fresh weights here, by name: what other weights to start from replace."""

    @abstractmethod
    def batch(self, step: int, rank: int, world: int) -> dict[str, Any]:
        """The part of batch ``step`` that process ``rank`` of ``world`` works on; a pure function of its arguments."""

    @abstractmethod
    def loss(self, module: nn.Module, batch: dict[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Scalar loss and what to log. ``module`` may be wrapped or compiled: call it, do not reach into it."""

    @abstractmethod
    def validate(self, module: nn.Module) -> dict[str, float]:
        """Validation figures of the averaged weights; ``"loss"`` drives the stop rule."""

    def sheet(self, module: nn.Module) -> Image.Image | str | None:
        """A sample of what the averaged weights produce, kept beside the logs."""
        del module
        return None

    @abstractmethod
    def finish(self, module: nn.Module, root: Path) -> None:
        """Write the trained component(s) into the checkpoint folder ``root``."""

    def fingerprint(self) -> str:
        """Identifies settings and data, so that a checkpoint is only resumed by the run it belongs to."""
        parts = (self.name, str(self.seed), *(one.model_dump_json() for one in (self.config, *self.settings)))
        parts += (self.origin,) if self.origin else ()
        return hashlib.sha256("|".join(parts).encode()).hexdigest()

    def loss_weights(self, **defaults: float) -> dict[str, float]:
        """``config.loss`` over ``defaults``; ConfigError lists the known names."""
        unknown = sorted(set(self.config.loss) - set(defaults))
        if unknown:
            raise ConfigError(f"stage {self.name}: unknown loss settings {unknown}: expected {', '.join(defaults)}")
        return defaults | self.config.loss


def permuted(n: int, start: int, count: int, seed: int) -> list[int]:
    """Positions ``start .. start + count`` of an endless stream that visits 0..n-1 once an epoch, reshuffled each."""
    if n == 0:
        raise DataError("nothing to train on: no study of the training split has what this stage needs")
    picked: list[int] = []
    while len(picked) < count:
        epoch, offset = divmod(start + len(picked), n)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(mix(seed, "epoch", epoch)))
        picked += order[offset : offset + count - len(picked)].tolist()
    return picked


def spread_over(n: int, start: float, device: torch.device) -> Tensor:
    """n numbers evenly spread over [0, 1), neighbours far apart (by the golden ratio): timesteps to validate at."""
    return (torch.arange(n, device=device) * 0.6180339887 + start) % 1


def learning_rate(config: StageConfig, step: int) -> float:
    """Linear warm-up, then cosine to ``final_lr_fraction`` of the peak at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine)


def _ema(decay: float) -> Any:
    """Exponential averaging with a warm-up of the decay, (1 + n) / (10 + n), as tensors are updated in one call."""

    def update(averaged: Any, current: Any, n: Tensor) -> None:
        weight = min(decay, (1 + int(n)) / (10 + int(n)))
        torch._foreach_lerp_(list(averaged), list(current), 1 - weight)

    return update


@contextmanager
def _quick_attention(device: torch.device, precision: str) -> Iterator[None]:
    """On a CPU in half precision, attention by plain products: the backward pass of the fused kernel is slow there."""
    if device.type != "cpu" or precision == "no":
        yield
        return
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    try:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)  # else the products are made in float32
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)


def _parameter_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices and kernels only; norms, biases and single vectors are left alone."""
    trained = [p for p in module.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]


@contextmanager
def _bar(stage: Stage, state: TrainState, shown: bool) -> Iterator[Any]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, disable=not shown) as progress:
        task = progress.add_task(stage.name, total=stage.config.steps, completed=state.step, rate="")
        yield lambda step, rate, loss: progress.update(task, completed=step, rate=f"{rate:.1f}/s loss {loss:.4f}")


def _trim_log(path: Path, step: int) -> None:
    """Drop lines that a killed run wrote after its last checkpoint."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # a line cut short by the kill
        if entry["step"] <= step:
            kept.append(line)
    path.write_text("".join(line + "\n" for line in kept))


def _tensorboard(folder: Path, step: int, wanted: bool) -> Any:
    if not wanted:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed: logs go to JSONL only")
        return None
    return SummaryWriter(str(folder), purge_step=step)


def train(stage: Stage, root: Path, options: LoopOptions = LoopOptions()) -> TrainState:
    """Train ``stage`` to the end (or its stop rule) and write its component(s) into ``root``.

    Work files live in ``root/training/<stage>``: checkpoints, ``log.jsonl``, TensorBoard events, sheets.
    Raises CheckpointError where a run is there already and ``resume`` is off, or resume finds other settings;
    DataError where the loss stops being finite.
    """
    config = stage.config
    work = root / "training" / stage.name
    checkpoints = work / "checkpoints"
    found = checkpoint.latest(checkpoints)
    if found and not options.resume:
        raise CheckpointError(f"{work} holds a run at {found.name}: continue it with --resume or choose another --out")

    accelerator = Accelerator(
        mixed_precision=options.precision, gradient_accumulation_steps=config.gradient_accumulation
    )
    main = accelerator.is_main_process
    state = TrainState()
    fingerprint = stage.fingerprint()
    averaged = AveragedModel(stage.module, multi_avg_fn=_ema(config.ema_decay), use_buffers=False)
    averaged.requires_grad_(False)
    optimizer = torch.optim.AdamW(
        _parameter_groups(stage.module, config.weight_decay), lr=config.learning_rate, betas=config.betas
    )
    best: dict[str, Tensor] | None = None
    if found:
        state, tensors = checkpoint.load(found, fingerprint)
        checkpoint.load_weights(stage.module, tensors["model"], found)
        checkpoint.load_weights(averaged, tensors["ema"], found)
        checkpoint.load_optimizer(optimizer, tensors["optimizer"])
        best = tensors.get("best")
        if accelerator.scaler is not None and state.scaler:
            accelerator.scaler.load_state_dict(state.scaler)
    averaged.to(accelerator.device)
    module, optimizer = accelerator.prepare(stage.module, optimizer)
    call = cast(nn.Module, torch.compile(module)) if options.compile else module  # a compiled module stays one

    work.mkdir(parents=True, exist_ok=True)
    if main:
        _trim_log(work / "log.jsonl", state.step)
    writer = _tensorboard(work / "tensorboard", state.step, options.tensorboard and main)

    def record(entry: dict[str, float]) -> None:
        with (work / "log.jsonl").open("a") as handle:
            handle.write(json.dumps(entry) + "\n")
        if writer:
            for key, value in entry.items():
                writer.add_scalar(key, value, entry["step"])

    def save() -> None:
        accelerator.wait_for_everyone()
        if accelerator.scaler is not None:
            state.scaler = accelerator.scaler.state_dict()
        if main:
            parts = {
                "model": accelerator.unwrap_model(module).state_dict(),
                "ema": averaged.state_dict(),
                "optimizer": checkpoint.optimizer_tensors(optimizer),
            }
            checkpoint.save(checkpoints, state, fingerprint, parts | ({"best": best} if best else {}))
        accelerator.wait_for_everyone()

    def validate() -> None:
        nonlocal best
        averaged.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(stage.seed, "validate"))
            figures = stage.validate(averaged.module)
            if figures["loss"] < state.best_loss:
                state.best_loss, state.best_step, state.bad_validations = figures["loss"], state.step, 0
                if config.patience:
                    best = {k: v.detach().cpu().clone() for k, v in averaged.module.state_dict().items()}
            else:
                state.bad_validations += 1
            state.stopped = config.patience is not None and state.bad_validations >= config.patience
            if main:
                record({"step": state.step} | {f"val/{k}": v for k, v in figures.items()})
                log.info("%s step %d: %s", stage.name, state.step, " ".join(f"{k} {v:.4g}" for k, v in figures.items()))
                sheet = stage.sheet(averaged.module)
                if isinstance(sheet, Image.Image):
                    sheet.save(work / f"sheet-{state.step:08d}.png")
                elif sheet is not None:
                    (work / f"sheet-{state.step:08d}.txt").write_text(sheet)

    with _bar(stage, state, options.progress and main) as show:
        module.train()
        clock, since = time.perf_counter(), state.step
        while state.step < config.steps and not state.stopped:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, state.step)
            loss, norm, logged = torch.zeros(()), None, {}  # as the last part of the batch leaves them
            for micro in range(config.gradient_accumulation):
                position = state.step * config.gradient_accumulation + micro
                torch.manual_seed(mix(stage.seed, stage.name, position, accelerator.process_index))
                batch = stage.batch(position, accelerator.process_index, accelerator.num_processes)
                batch = {
                    key: value.to(accelerator.device) if isinstance(value, Tensor) else value
                    for key, value in batch.items()
                }
                attention = _quick_attention(accelerator.device, options.precision)
                with accelerator.accumulate(module), accelerator.autocast(), attention:
                    loss, logged = stage.loss(call, batch)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(module.parameters(), config.grad_clip)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            averaged.update_parameters(accelerator.unwrap_model(module))
            state.step += 1

            last = state.step == config.steps
            logs = last or state.step % options.log_every == 0
            saves = last or state.step % config.checkpoint_every == 0
            if logs or saves:
                value = loss.item()  # checked before every checkpoint too, so that none holds such weights
                if not math.isfinite(value):
                    raise DataError(
                        f"{stage.name}: loss is {value} at step {state.step}: resume with --precision no, "
                        "or train into another --out with a lower learning rate"
                    )
                if logs:
                    rate = (state.step - since) / (time.perf_counter() - clock)
                    show(state.step, rate, value)
                    clock, since = time.perf_counter(), state.step
                    if main:
                        assert norm is not None  # the last part of a batch clips
                        extra = {k: float(v) for k, v in logged.items()}
                        figures = {"step": state.step, "loss": value, "grad_norm": float(norm), "steps_per_s": rate}
                        record(figures | extra)
            if last or state.step % config.validate_every == 0:
                validate()
                module.train()
            if saves or state.stopped:
                save()

    accelerator.wait_for_everyone()
    final = averaged.module.eval()
    if best is not None:
        final.load_state_dict(best)
    if main:
        with torch.no_grad():
            stage.finish(final, root)
    accelerator.wait_for_everyone()
    if writer:
        writer.close()
    return state
