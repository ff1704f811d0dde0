"""``xgem train``: the stages of a preset, one by one or all."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xgem.cli import completion


def train(
    stage: Annotated[
        str,
        typer.Argument(
            metavar="STAGE",
            help="image-vae, image-decoder, clip, report-vae, frontal, lateral, report, joint, control, all, or reid.",
            autocompletion=completion.stages,
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="Manifest with splits train and val.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the checkpoint and the training logs.")],
    preset: Annotated[
        str | None,
        typer.Option(
            "--preset",
            help="Preset name or YAML file; for reid: small or published.",
            show_default=False,
            autocompletion=completion.presets,
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume an earlier run, if there is one.")] = False,
    init: Annotated[
        str | None,
        typer.Option(
            "--init", help="Initialise from this checkpoint: embedded, folder or hub id.", show_default="random weights"
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed of weights, data order and noise.")] = 0,
    use_compile: Annotated[
        bool, typer.Option("--compile", help="Compile the model; worthwhile for long runs.")
    ] = False,
    precision: Annotated[str, typer.Option("--precision", help="Mixed precision: no (float32), bf16 or fp16.")] = "no",
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="Number of CPU threads; default: all cores.")
    ] = None,
    progress: Annotated[bool, typer.Option(help="Show a progress bar.")] = True,
) -> None:
    """Train one stage, or all of them, and write a checkpoint for `xgem generate --model` to --out.

    Progress is saved regularly: after an interruption, the same command with --resume ends with the same weights.

    Stage reid is not part of a preset: it trains the re-identification network that xgem eval privacy uses.
    """
    import logging

    import torch

    from xgem.checkpoints.locate import locate
    from xgem.configs import load_preset
    from xgem.data.manifest import Manifest
    from xgem.train.loop import LoopOptions
    from xgem.train.stages import planned, run, stages
    from xgem.types import InputError

    if precision not in {"no", "bf16", "fp16"}:
        raise InputError(f"--precision {precision}: expected no, bf16 or fp16")
    if stage not in ("all", "reid", *stages()):
        raise InputError(f"unknown stage {stage!r}: expected all, reid or one of {', '.join(stages())}")
    if preset is None and stage != "reid":
        raise InputError(f"stage {stage!r} is one of a preset: name it with --preset")
    if threads is not None:
        torch.set_num_threads(threads)
    logging.getLogger("xgem").setLevel(logging.INFO)
    options = LoopOptions(resume=resume, compile=use_compile, precision=precision, progress=progress)
    torch.set_flush_denormal(True)  # averaged weights decay through numbers that slow a CPU down
    try:
        if stage == "reid":
            from xgem.train import reid

            start = None if init is None else Path(init)
            reid.run(
                Manifest.read(data), out, options, preset=preset or "small", seed=seed, init=start, progress=progress
            )
            return
        source = None if init is None else locate(init).root
        loaded = load_preset(str(preset))
        names = planned(loaded) if stage == "all" else (stage,)
        run(names, loaded, Manifest.read(data), out, options, seed=seed, init=source)
    finally:
        torch.set_flush_denormal(False)  # whoever called goes on with IEEE's numbers
