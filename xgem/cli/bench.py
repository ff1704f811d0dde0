"""``xgem bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xgem.cli.options import Device, Progress
from xgem.utils.signals import interruptible

app = typer.Typer(no_args_is_help=True, help="Run published benchmarks and experiments.")

PlanFile = Annotated[
    Path | None,
    typer.Argument(
        metavar="PLAN", help="Plan of the experiment, a YAML file.", show_default="the shipped one of --size"
    ),
]
Out = Annotated[
    Path, typer.Option("--out", metavar="DIR", help="Folder to write: new, empty, or begun with the same data.")
]
Size = Annotated[
    str, typer.Option("--size", metavar="NAME", help="Which shipped plan, where none is given: debug or paper.")
]


@app.callback()
def _group() -> None:  # pyright: ignore[reportUnusedFunction]
    """Run published benchmarks and experiments."""


@app.command()
def chexgenbench(
    out: Out,
    plan: PlanFile = None,
    size: Size = "debug",
    device: Device = None,
    progress: Progress = True,
) -> None:
    """CheXGenBench: fidelity, privacy and utility of several models, with its tables and ranks.

    xgem bench chexgenbench plan.yaml --out bench

    After an interruption, the same command goes on: finished batches, networks and parts are not made again.
    """
    from xgem.experiments.chexgenbench.plan import read_bench
    from xgem.experiments.chexgenbench.run import run

    with interruptible("what is finished is kept, and the same command goes on"):
        done = run(read_bench(plan, size=size), out, device=device, progress=progress)
    typer.echo(f"{out}: {done.measured} parts measured, {len(done.records)} models; see {out / 'README.md'}")
