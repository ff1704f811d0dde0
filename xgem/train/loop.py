"""The training loop, the same for every stage.

Random numbers and data order follow from the seed and a sample's number in the run (``xgem.train.share``): a resumed
run equals an unbroken one (bitwise on a CPU) without any random state on disk, on any number of processes.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import reduce
from filelock import FileLock, Timeout
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xgem._version import __version__
from xgem.checkpoints import training as checkpoint
from xgem.checkpoints.training import TrainState
from xgem.configs.preset import StageConfig
from xgem.train.averaging import Average
from xgem.train.logs import Logs
from xgem.train.optimizer import optimizer_of
from xgem.train.parallel import InParts, Parallel, Whole
from xgem.train.passes import Passes, shares_of
from xgem.train.processes import Processes
from xgem.train.saving import Saver, restore
from xgem.train.sharding import WholeCopy, brought_together, fill, mesh_of, mesh_shape, shard, without_storage
from xgem.train.stage import Stage
from xgem.types import CheckpointError, ConfigError, DataError, DeviceError, OutputError, StoppedError
from xgem.utils.files import replacing
from xgem.utils.progress import StepBar
from xgem.utils.random import mix
from xgem.utils.signals import Pending, deferred

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
    sharding: str = "no"
    """``full``: each of several processes has a part of every weight; ``hybrid``: of every weight of its node."""
    checkpoint_activations: bool = False
    """Compute activations again in the backward pass instead of keeping them, where the stage can."""
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


_TIME = 10_000  # among the numbers of signals: the time is up

_LESS = "micro-batch-size"  # the file with the size that fits, once memory has run out

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
        AcceleratorState._reset_state()  # which would keep the precision of an earlier run of this process
        self.accelerator = Accelerator(mixed_precision=options.precision)
        self.processes = Processes.current()
        self.main = self.processes.main
        self.fingerprint = stage.fingerprint()
        with self.processes.in_agreement():
            latest = self._found()
        latest = self.processes.of_all(latest)[0]  # what the first process has found
        with self.processes.in_agreement():
            self._check()
        if options.checkpoint_activations and not stage.checkpoint_activations():
            log.info("%s: keeps its activations, which no part of it computes again", stage.name)
        self.in_parts = options.sharding != "no"
        self.averaged = self._divide() if self.in_parts else Average(stage.module, self.config.ema_decay)
        # One kernel a step where it is a GPU's
        optimizer = optimizer_of(stage.module, self.config, fused=self.accelerator.device.type == "cuda")
        # Weights and moments are restored before accelerate wraps what holds them
        with self.processes.in_agreement():
            if latest is not None:
                self.state = checkpoint.load_state(latest, self.fingerprint)
                group = self.processes.group if self.in_parts else None
                self.best = restore(latest, stage.module, self.averaged, optimizer, group)
        if self.accelerator.scaler is not None and self.state.scaler:
            self.accelerator.scaler.load_state_dict(self.state.scaler)
        self.averaged.to(self.accelerator.device)
        if self.in_parts:
            self.parallel: Parallel = InParts(stage.module, optimizer)
        else:
            self.parallel = Whole(self.accelerator, stage.module, optimizer)
        # A compiled module stays compiled
        compiled = options.compile and not self.in_parts
        call = cast(nn.Module, torch.compile(self.parallel.call)) if compiled else self.parallel.call
        self.passes = Passes(stage, call, self.accelerator, options.precision, self._most_at_once())
        with checkpoint.writable(self.work):
            if self.main and not is_finished(self.state, self.config):
                (self.work / FINISHED).unlink(missing_ok=True)  # of a run whose checkpoints are gone
        self.logs = Logs(self.work, self.state.step, wanted=self.main, tensorboard=options.tensorboard)
        self.saver = Saver(self.checkpoints, self.fingerprint, self.processes, in_parts=self.in_parts)

    def _check(self) -> None:
        """Refuse what this stage cannot do on several processes."""
        options, stage, count = self.options, self.stage, self.processes.count
        shares_of(stage, 0, count, options.micro_batch_size)
        if count > 1 and any(isinstance(part, _BatchNorm) for part in stage.module.modules()):
            raise ConfigError(
                f"stage {stage.name}: has batch normalisation, which depends on how a batch is divided: "
                "train it with one process"
            )
        if options.sharding != "no" and options.precision == "fp16":
            raise ConfigError("sharding: fp16 has a loss scale that parts do not share: use bf16 or no")
        if options.sharding != "no":
            mesh_shape(options.sharding, count)

    def _divide(self) -> Average:
        """Leave to each process its parts of the weights, which the first one has; returns averages in such parts."""
        options, module, device = self.options, self.stage.module, self.accelerator.device
        mesh = mesh_of(mesh_shape(options.sharding, self.processes.count), device.type)
        module.to(memory_format=torch.contiguous_format)  # neither divided nor sent in channels_last
        whole = module.state_dict() if self.main else {}
        self.whole = WholeCopy(module, self.main)
        averaged = Average(without_storage(module), self.config.ema_decay)
        shard(module, mesh, compiled=options.compile)
        shard(averaged.module, mesh)
        for one in (module, averaged.module):
            fill(one, whole, device)
        return averaged

    def _found(self) -> Path | None:
        """The checkpoint to go on from, if there is one."""
        ours = self.processes.of_all((__version__, torch.__version__, self.fingerprint))
        if len(set(ours)) > 1:
            said = "; ".join(f"process {i}: xgem {one[0]}, torch {one[1]}" for i, one in enumerate(ours))
            raise ConfigError(
                f"processes differ in their versions, settings or data ({said}): give all of them the same"
            )
        latest = checkpoint.latest(self.checkpoints)
        if latest and not self.options.resume:
            raise CheckpointError(
                f"{self.work} holds a run at {latest.name}: continue it with --resume or choose another --out"
            )
        return checkpoint.latest_whole(self.checkpoints) if self.main else None

    def step(self) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """One optimizer step: loss and logged terms of this process, gradient norm before clipping."""
        for group in self.parallel.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.state.step)
        while True:
            try:
                done, norm = self.parallel.gradients(self.passes.losses(self.state.step), self.config.grad_clip)
                break
            except torch.OutOfMemoryError as error:
                reason = str(error).partition(".")[0]
            self._take_less(reason)
        self.parallel.update()
        self.averaged.update_parameters(self.stage.module)
        self.state.step += 1
        terms = {name: torch.stack([one.terms[name] for one in done]).mean() for name in done[0].terms}
        return torch.stack([one.shown for one in done]).mean(), norm, terms

    def _take_less(self, reason: str) -> None:
        """Divide a batch further where memory ran out, and go on with the same step.

        Several processes cannot, as the others wait for this one's gradients: they stop, and do so at their next start.
        """
        before = self.passes.shares[0].size
        if before == 1:
            raise DeviceError(
                f"{self.stage.name}: memory runs out with one sample at once ({reason}): use --checkpoint-activations, "
                "more GPUs with --sharding full, or --precision bf16; xgem plan says what fits"
            )
        self.parallel.optimizer.zero_grad(set_to_none=True)
        torch.cuda.empty_cache()
        size = self.passes.divide(before // 2)
        said = f"{self.stage.name}: memory runs out with {before} samples at once ({reason})"
        with replacing(self.work / _LESS) as file:
            file.write_text(f"{size}\n", encoding="utf-8")
        if self.processes.count > 1:
            raise DeviceError(f"{said}: start again with --resume, which takes {size}")
        log.warning("%s: going on with %d", said, size)

    def _most_at_once(self) -> int | None:
        """The user's limit; else what was found here when memory ran out."""
        try:
            found = int((self.work / _LESS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            found = None
        return self.options.micro_batch_size or found

    def mean(self, value: Tensor) -> float:
        """The mean of a number over all processes."""
        return float(cast(Tensor, reduce(value.detach().float(), "mean")))

    def finite(self, loss: Tensor) -> float:
        """The mean loss of all processes; DataError where it is not a number."""
        value = self.mean(loss)
        with self.processes.in_agreement():
            if not math.isfinite(value):
                raise DataError(
                    f"{self.stage.name}: loss is {value} at step {self.state.step}: resume with --precision no, "
                    "or train into another --out with a lower learning rate"
                )
        return value

    def ends(self, signals: Pending) -> str | None:
        """Why to stop here, if a process has to: all of them stop then, and take the signal that it has received."""
        said = self.processes.greatest(signals.number or _TIME * self.options.time_is_up)
        if said == _TIME or not said:
            return "time is up" if said else None
        signals.number = said
        return f"stopped by {signal.Signals(said).name}"

    def save(self) -> None:
        """Write a checkpoint from which the run can be resumed, while training goes on."""
        if self.accelerator.scaler is not None:
            self.state.scaler = self.accelerator.scaler.state_dict()
        parts = {
            "model": self.stage.module.state_dict(),
            "ema": self.averaged.state_dict(),
            "optimizer": checkpoint.optimizer_tensors(self.parallel.optimizer),
        }
        self.saver.save(self.state, parts | ({"best": self.best} if self.best else {}))

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
                    self.best = checkpoint.on_cpu(self.averaged.module.state_dict())
            else:
                state.bad_validations += 1
            state.stopped = self.config.patience is not None and state.bad_validations >= self.config.patience
            if self.main:
                self.logs.record({"step": state.step} | {f"val/{name}": value for name, value in figures.items()})
                text = " ".join(f"{name} {value:.4g}" for name, value in figures.items())
                log.info("%s step %d: %s", stage.name, state.step, text)
            if self.main or self.in_parts:
                with brought_together(self.averaged.module):
                    self.logs.sheet(stage.sheet(self.averaged.module), state.step)
        stage.module.train()

    def finish(self, root: Path) -> None:
        """Write the component(s) with the averaged weights, or the best ones where there is a stop rule."""
        final = self.averaged.module.eval()
        if self.best is not None:
            final.load_state_dict(self.best)
        if self.in_parts:
            final = self.whole.filled(final).eval()
        with self.processes.in_agreement():
            if self.main:
                with torch.no_grad():
                    self.stage.finish(final, root)
                with checkpoint.writable(self.work):
                    (self.work / FINISHED).write_text(f"{self.state.step}\n", encoding="utf-8")


def train(stage: Stage, root: Path, options: LoopOptions = LoopOptions()) -> TrainState:
    """Train ``stage`` to the end (or its stop rule) and write its component(s) into ``root``.

    Work files live in ``root/training/<stage>``: checkpoints, ``log.jsonl``, TensorBoard events, sheets, and
    ``finished`` once the components are written. At ``options.until``, but after one step at least, training stops with
    a checkpoint: no component is written, and a resumed run goes on. So it does when a scheduler's signal asks for it
    (``xgem.utils.signals``), which then takes its usual effect.

    Raises:
        CheckpointError: a run is there already and ``resume`` is off, or resume finds other settings.
        DataError: the loss is no longer finite. OutputError: the disk takes no more, what was saved before stays; or
        another run is training in this folder. StoppedError: a signal has stopped training and not ended the process.
    """
    with _alone(root / "training" / stage.name):
        run = _Run(stage, root, options)
        with run.logs, deferred() as signals, run.saver:
            reason = _loop(run, signals)
            run.saver.wait()
        if signals.number and reason is not None:
            raise StoppedError(reason)  # whoever handled the signal has let this process live
        if reason is None:
            run.finish(root)
    return run.state


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Have a work folder for this run; OutputError if another one has it."""
    processes = Processes.current()
    lock = FileLock(work / ".lock", blocking=False)
    with processes.in_agreement(), checkpoint.writable(work):
        work.mkdir(parents=True, exist_ok=True)
        try:
            if processes.main:
                lock.acquire()
        except Timeout:
            raise OutputError(
                f"{work}: another run is training here; processes that are to train together are started by torchrun, "
                "accelerate launch or srun"
            ) from None
    try:
        yield
    finally:
        lock.release()


def _loop(run: _Run, signals: Pending) -> str | None:
    """Take the steps that are left; why it stopped before the last one, None where it did not."""
    config, state, options, name = run.config, run.state, run.options, run.stage.name
    with _bar(run.stage, state, options.progress and run.main) as show:
        run.stage.module.train()
        clock, since = time.perf_counter(), state.step
        while not is_finished(state, config):
            loss, norm, logged = run.step()
            last = state.step == config.steps
            ends = None if last else run.ends(signals)
            logs = last or state.step % options.log_every == 0
            saves = last or ends is not None or state.step % config.checkpoint_every == 0
            # The loss is checked before every checkpoint too, so that none holds weights of a diverged run
            value = run.finite(loss) if logs or saves else math.nan
            if logs:
                rate = (state.step - since) / (time.perf_counter() - clock)
                show(state.step, rate, value)
                clock, since = time.perf_counter(), state.step
                figures = {"step": state.step, "loss": value, "grad_norm": float(norm), "steps_per_s": rate}
                figures |= {name: run.mean(term) for name, term in logged.items()}
                if run.main:
                    run.logs.record(figures)
            if last or state.step % config.validate_every == 0:
                run.validate()
            if saves or state.stopped:
                run.save()
            if ends and not state.stopped:
                reason = f"{name}: {ends} at step {state.step} of {config.steps}; --resume goes on"
                log.info(reason)
                return reason
    return None
