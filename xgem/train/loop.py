"""The training loop, the same for every stage.

Random numbers and data order follow from the seed and a sample's number in the run (``xgem.train.share``): a resumed
run equals an unbroken one (bitwise on a CPU) without any random state on disk, on any number of processes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, reduce
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xgem.checkpoints import training as checkpoint
from xgem.checkpoints.training import TrainState
from xgem.configs.preset import StageConfig
from xgem.train.averaging import Average
from xgem.train.logs import Logs
from xgem.train.optimizer import optimizer_of
from xgem.train.passes import Loss, Passes
from xgem.train.stage import Stage
from xgem.types import CheckpointError, ConfigError, DataError
from xgem.utils.progress import StepBar
from xgem.utils.random import mix

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoopOptions:
    """How to run, as opposed to what to train. None of these changes the result of a CPU run, except ``precision`` and,
    by rounding, ``micro_batch_size``: the greatest number of samples that a process works on at once.
    """

    resume: bool = False
    compile: bool = False
    precision: str = "no"
    micro_batch_size: int | None = None
    progress: bool = True
    log_every: int = 20
    tensorboard: bool = True
    until: float | None = None
    """When to stop between two steps, with a checkpoint, as a value of ``time.monotonic()``; None: at the end."""

    @property
    def time_is_up(self) -> bool:
        return self.until is not None and time.monotonic() >= self.until


def learning_rate(config: StageConfig, step: int) -> float:
    """Linear warm-up, then cosine to ``final_lr_fraction`` of the peak at the last step."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return config.learning_rate * (config.final_lr_fraction + (1 - config.final_lr_fraction) * cosine)


@contextmanager
def _bar(stage: Stage, state: TrainState, shown: bool) -> Iterator[Any]:
    with StepBar(stage.name, stage.config.steps, done=state.step, shown=shown) as bar:
        yield lambda step, rate, loss: bar.move_to(step, f"{rate:.1f}/s loss {loss:.4f}")


FINISHED = "finished"
"""The file in a stage's work folder that says that it is finished: its last step, written after its components."""


def is_finished(state: TrainState, config: StageConfig) -> bool:
    """Whether a stage has trained all of its steps, or its stop rule has ended it."""
    return state.stopped or state.step >= config.steps


class _Run:
    """One run of a stage: its modules, optimizer, averaged weights, and work files in ``root/training/STAGE``."""

    def __init__(self, stage: Stage, root: Path, options: LoopOptions) -> None:
        self.stage, self.config, self.options = stage, stage.config, options
        self.work = root / "training" / stage.name
        self.checkpoints = self.work / "checkpoints"
        self.state = TrainState()
        self.best: dict[str, Tensor] | None = None
        latest = checkpoint.latest(self.checkpoints)
        if latest and not options.resume:
            raise CheckpointError(
                f"{self.work} holds a run at {latest.name}: continue it with --resume or choose another --out"
            )
        self.accelerator = Accelerator(mixed_precision=options.precision)
        self.main = self.accelerator.is_main_process
        if self.accelerator.num_processes > 1 and any(isinstance(part, _BatchNorm) for part in stage.module.modules()):
            raise ConfigError(
                f"stage {stage.name}: has batch normalisation, which depends on how a batch is divided: "
                "train it with one process"
            )
        self.fingerprint = stage.fingerprint()
        self.averaged = Average(stage.module, self.config.ema_decay)
        optimizer = optimizer_of(stage.module, self.config)
        # Weights and moments are restored before accelerate wraps what holds them
        if latest:
            self._restore(latest, optimizer)
        self.averaged.to(self.accelerator.device)
        self.module, self.optimizer = self.accelerator.prepare(stage.module, optimizer)
        # A compiled module stays compiled
        call = cast(nn.Module, torch.compile(self.module)) if options.compile else self.module
        self.passes = Passes(stage, call, self.accelerator, options.precision, options.micro_batch_size)
        self.accelerator.gradient_accumulation_steps = len(self.passes.shares)
        with checkpoint.writable(self.work):
            self.work.mkdir(parents=True, exist_ok=True)
            if self.main and not is_finished(self.state, self.config):
                (self.work / FINISHED).unlink(missing_ok=True)  # of a run whose checkpoints are gone
        self.logs = Logs(self.work, self.state.step, wanted=self.main, tensorboard=options.tensorboard)

    def _restore(self, folder: Path, optimizer: torch.optim.Optimizer) -> None:
        """Go on from the checkpoint in ``folder``."""
        self.state, tensors = checkpoint.load(folder, self.fingerprint)
        checkpoint.load_weights(self.stage.module, tensors["model"], folder)
        checkpoint.load_weights(self.averaged, tensors["ema"], folder)
        checkpoint.load_optimizer(optimizer, tensors["optimizer"])
        self.best = tensors.get("best")
        if self.accelerator.scaler is not None and self.state.scaler:
            self.accelerator.scaler.load_state_dict(self.state.scaler)

    def step(self) -> tuple[Tensor, Tensor | None, dict[str, Tensor]]:
        """One optimizer step: loss and logged terms of this process, gradient norm before clipping."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.state.step)
        done: list[Loss] = []
        norm = None
        for loss_of_share in self.passes.losses(self.state.step):
            with self.accelerator.accumulate(self.module):
                done.append(loss_of_share())
                # A share may leave parameters out, but DDP expects gradients of all, and one process is no other case
                unused = 0 * sum(p.sum() for p in self.module.parameters() if p.requires_grad)
                self.accelerator.backward(done[-1].value + unused)
                if self.accelerator.sync_gradients:
                    norm = self.accelerator.clip_grad_norm_(self.module.parameters(), self.config.grad_clip)
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        self.averaged.update_parameters(self.accelerator.unwrap_model(self.module))
        self.state.step += 1
        terms = {name: torch.stack([one.terms[name] for one in done]).mean() for name in done[0].terms}
        return torch.stack([one.shown for one in done]).mean(), norm, terms

    def mean(self, value: Tensor) -> float:
        """The mean of a number over all processes."""
        return float(cast(Tensor, reduce(value.detach().float(), "mean")))

    def time_is_up(self) -> bool:
        """Whether to stop here; what the first process says holds for all."""
        if self.options.until is None or self.accelerator.num_processes == 1:
            return self.options.time_is_up
        said = torch.tensor(float(self.options.time_is_up), device=self.accelerator.device)
        return bool(cast(Tensor, broadcast(said)).item())

    def save(self) -> None:
        """Write a checkpoint from which the run can be resumed."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.scaler is not None:
            self.state.scaler = self.accelerator.scaler.state_dict()
        if self.main:
            parts = {
                "model": self.accelerator.unwrap_model(self.module).state_dict(),
                "ema": self.averaged.state_dict(),
                "optimizer": checkpoint.optimizer_tensors(self.optimizer),
            }
            parts |= {"best": self.best} if self.best else {}
            checkpoint.save(self.checkpoints, self.state, self.fingerprint, parts)
        self.accelerator.wait_for_everyone()

    @torch.no_grad()
    def validate(self) -> None:
        """Measure the averaged weights, apply the stop rule, and keep a sample sheet."""
        stage, state = self.stage, self.state
        self.averaged.eval()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(stage.seed, "validate"))
            figures = stage.validate(self.averaged.module)
            # Stop rule: `patience` validations without a better loss
            if figures["loss"] < state.best_loss:
                state.best_loss, state.best_step, state.bad_validations = figures["loss"], state.step, 0
                if self.config.patience:
                    weights = self.averaged.module.state_dict()
                    self.best = {name: value.detach().cpu().clone() for name, value in weights.items()}
            else:
                state.bad_validations += 1
            state.stopped = self.config.patience is not None and state.bad_validations >= self.config.patience
            if self.main:
                self.logs.record({"step": state.step} | {f"val/{name}": value for name, value in figures.items()})
                text = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
                log.info("%s step %d: %s", stage.name, state.step, text)
                self.logs.sheet(stage.sheet(self.averaged.module), state.step)
        self.module.train()

    def finish(self, root: Path) -> None:
        """Write the component(s) with the averaged weights, or the best ones where there is a stop rule."""
        self.accelerator.wait_for_everyone()
        final = self.averaged.module.eval()
        if self.best is not None:
            final.load_state_dict(self.best)
        if self.main:
            with torch.no_grad():
                self.stage.finish(final, root)
            with checkpoint.writable(self.work):
                (self.work / FINISHED).write_text(f"{self.state.step}\n", encoding="utf-8")
        self.accelerator.wait_for_everyone()
        self.logs.close()


def _finite(value: float, stage: str, step: int) -> float:
    if not math.isfinite(value):
        raise DataError(
            f"{stage}: loss is {value} at step {step}: resume with --precision no, "
            "or train into another --out with a lower learning rate"
        )
    return value


def train(stage: Stage, root: Path, options: LoopOptions = LoopOptions()) -> TrainState:
    """Train ``stage`` to the end (or its stop rule) and write its component(s) into ``root``.

    Work files live in ``root/training/<stage>``: checkpoints, ``log.jsonl``, TensorBoard events, sheets, and
    ``finished`` once the components are written. At ``options.until``, but after one step at least, training stops with
    a checkpoint: no component is written, and a resumed run goes on.

    Raises:
        CheckpointError: a run is there already and ``resume`` is off, or resume finds other settings.
        DataError: the loss is no longer finite. OutputError: the disk takes no more; what was saved before stays.
    """
    run = _Run(stage, root, options)
    config, state = run.config, run.state
    with _bar(stage, state, options.progress and run.main) as show:
        run.module.train()
        clock, since = time.perf_counter(), state.step
        while not is_finished(state, config):
            loss, norm, logged = run.step()
            last = state.step == config.steps
            ends = not last and run.time_is_up()
            logs = last or state.step % options.log_every == 0
            saves = last or ends or state.step % config.checkpoint_every == 0
            # The loss is checked before every checkpoint too, so that none holds weights of a diverged run
            value = _finite(run.mean(loss), stage.name, state.step) if logs or saves else math.nan
            if logs:
                rate = (state.step - since) / (time.perf_counter() - clock)
                show(state.step, rate, value)
                clock, since = time.perf_counter(), state.step
                assert norm is not None  # the last part of a batch clips
                figures = {"step": state.step, "loss": value, "grad_norm": float(norm), "steps_per_s": rate}
                figures |= {name: run.mean(term) for name, term in logged.items()}
                if run.main:
                    run.logs.record(figures)
            if last or state.step % config.validate_every == 0:
                run.validate()
            if saves or state.stopped:
                run.save()
            if ends and not state.stopped:
                log.info("%s: time is up at step %d of %d; --resume goes on", stage.name, state.step, config.steps)
                run.logs.close()
                return state
    run.finish(root)
    return state
