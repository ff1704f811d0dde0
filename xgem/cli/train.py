"""``xgem train``: the stages of a preset, one by one or all."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xgem.cli import completion
from xgem.cli.grouped import grouped
from xgem.cli.options import Device, Progress
from xgem.cli.train_peers import PEERS, Peer
from xgem.types import InputError
from xgem.utils.signals import interruptible

if TYPE_CHECKING:
    from xgem.train.loop import LoopOptions


@dataclass(frozen=True, kw_only=True)
class Running:
    """How a training runs, as opposed to what is trained."""

    resume: Annotated[bool, typer.Option("--resume", help="Resume an earlier run, if there is one.")] = False
    device: Device = None
    compile: Annotated[bool, typer.Option("--compile", help="Compile the model; worthwhile for long runs.")] = False
    precision: Annotated[str, typer.Option("--precision", help="Mixed precision: no (float32), bf16 or fp16.")] = "no"
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Number of CPU threads; default: all cores.")
    ] = None
    micro_batch_size: Annotated[
        int | None,
        typer.Option(
            "--micro-batch-size",
            min=1,
            help="Most samples that a process works on at once, where memory is short.",
            show_default="its share of a batch",
        ),
    ] = None
    sharding: Annotated[
        str,
        typer.Option(
            "--sharding",
            help="Of several processes: no (each has all weights), full (each has a part of every weight, of its "
            "gradient, moments and average), or hybrid (all weights are on every node, in parts).",
        ),
    ] = "no"
    checkpoint_activations: Annotated[
        bool,
        typer.Option(
            "--checkpoint-activations",
            help="Compute activations of denoisers again in the backward pass: less memory, about a third more time.",
        ),
    ] = False
    max_minutes: Annotated[
        float | None,
        typer.Option(
            "--max-minutes",
            metavar="M",
            help="Stop after M minutes with a checkpoint from which --resume goes on.",
            show_default="no limit",
        ),
    ] = None
    encoded: Annotated[
        Path | None,
        typer.Option(
            "--encoded",
            metavar="DIR",
            help="Folder of `xgem data encode`: generators read --data from it, encoded.",
            show_default="encode in memory",
        ),
    ] = None
    progress: Progress = True

    def options(self) -> LoopOptions:
        """The options of the loop, checked; time counts from here."""
        from xgem.train.loop import LoopOptions
        from xgem.train.sharding import KINDS

        if self.max_minutes is not None and not 0 < self.max_minutes < math.inf:
            raise InputError(f"--max-minutes {self.max_minutes:g}: expected more than 0")
        if self.precision not in {"no", "bf16", "fp16"}:
            raise InputError(f"--precision {self.precision}: expected no, bf16 or fp16")
        if self.sharding not in KINDS:
            raise InputError(f"--sharding {self.sharding}: expected {' or '.join(KINDS)}")
        until = None if self.max_minutes is None else time.monotonic() + 60 * self.max_minutes
        return LoopOptions(
            resume=self.resume,
            compile=self.compile,
            precision=self.precision,
            micro_batch_size=self.micro_batch_size,
            sharding=self.sharding,
            checkpoint_activations=self.checkpoint_activations,
            progress=self.progress,
            until=until,
        )


@grouped
def train(
    running: Running,
    peer: Peer,
    stage: Annotated[
        str,
        typer.Argument(
            metavar="STAGE",
            help="One of a preset (image-vae, clip, report-vae, frontal ...), all of them, reid, lora or full.",
            autocompletion=completion.stages,
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="Manifest with splits train and val.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the checkpoint and the training logs.")],
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Preset name or YAML file; for reid: mobilenet, small or published.",
            show_default=False,
            autocompletion=completion.presets,
        ),
    ] = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init", help="Initialise from this checkpoint: embedded, folder or hub id.", show_default="random weights"
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed of weights, data order and noise.")] = 0,
    steps: Annotated[
        int | None,
        typer.Option("--steps", min=1, help="Training steps of each stage.", show_default="the preset's"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="STAGE.FIELD=VALUE",
            help="Another value of a training setting, such as clip.batch_size=32; may be repeated.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Train one stage, or all of them, and write a checkpoint for `xgem generate --model` to --out.

    Progress is saved regularly: after an interruption, the same command with --resume ends with the same weights.

    xgem train all --preset openi-256-tune --init openi-256 --data mine.parquet --out tuned

    --max-minutes counts from the start of the command, for all of its stages. A stage that is not finished has no
    component in --out yet and no file OUT/training/STAGE/finished; the exit status is 0 either way.

    Where torchrun or accelerate launch starts this command, processes divide a batch; the result is that of one.

    Not of a preset: reid, the re-identification network of xgem eval privacy; lora and full, of a diffusers pipeline:

    xgem train lora --base diffusers:ID --data mine.parquet --out runs/lora
    """
    import torch

    from xgem.train.stages import stages

    loop = running.options()
    if stage not in ("all", "reid", *PEERS, *stages()):
        raise InputError(f"unknown stage {stage!r}: expected all, reid, lora, full or one of {', '.join(stages())}")
    peer.check(stage, {"--preset": preset, "--init": init, "--encoded": running.encoded})
    if preset is None and stage not in ("reid", *PEERS):
        raise InputError(f"stage {stage!r} is one of a preset: name it with --preset")
    if running.threads is not None:
        torch.set_num_threads(running.threads)
    logging.getLogger("xgem").setLevel(logging.INFO)
    torch.set_flush_denormal(True)  # averaged weights decay through numbers that slow a CPU down
    try:
        changes = {"seed": seed, "steps": steps, "settings": settings or ()}
        if stage in PEERS:
            peer.train(stage, data, out, loop, running.device, **changes)
        else:
            _run(stage, preset, data, out, loop, running.device, init=init, encoded=running.encoded, **changes)
    finally:
        torch.set_flush_denormal(False)  # whoever called goes on with IEEE's numbers


def _run(
    stage: str,
    preset: str | None,
    data: Path,
    out: Path,
    loop: LoopOptions,
    device: str | None,
    *,
    init: str | None,
    encoded: Path | None,
    seed: int,
    steps: int | None,
    settings: Sequence[str],
) -> None:
    from xgem.checkpoints.locate import locate
    from xgem.configs import load_preset
    from xgem.configs.changes import with_stage_settings
    from xgem.data.manifest import Manifest
    from xgem.train import reid
    from xgem.train.processes import Processes, together
    from xgem.train.stages import planned, run, run_encoded

    if stage == "reid":
        if encoded is not None:
            raise InputError("--encoded: stage 'reid' reads images; leave it out")
        known, name = reid.PRESETS, preset or "small"
        config = None
        trained = known[name].train if name in known else None
        if name in known and trained is None and (steps is not None or settings):
            raise InputError(f"preset {name!r} of reid is fitted, not trained: leave out --steps and --set")
        if trained is not None:
            config = with_stage_settings({"reid": trained}, settings, steps=steps)["reid"]
        start = None if init is None else Path(init)
        with together(device):
            reid.run(
                Manifest.read(data),
                out,
                loop,
                preset=name,
                config=config,
                seed=seed,
                init=start,
                progress=loop.progress,
            )
        return
    source = None if init is None else locate(init).root
    loaded = load_preset(str(preset))
    names = planned(loaded) if stage == "all" else (stage,)
    trained = {name: loaded.train[name] for name in names if name in loaded.train}
    changed = with_stage_settings(trained, settings, steps=steps)
    loaded = loaded.model_copy(update={"train": {**loaded.train, **changed}})
    with together(device), interruptible("the same command goes on from the last checkpoint"):
        if not Processes.current().main:
            logging.getLogger("xgem").setLevel(logging.WARNING)
        if encoded is None:
            run(names, loaded, data, out, loop, seed=seed, init=source)
        else:
            run_encoded(names, loaded, data, encoded, out, loop, seed=seed, init=source)
