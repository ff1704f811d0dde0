"""``xgem bench``: published experiments and benchmarks, each from a plan to its paper's tables."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from xgem.cli.options import Device, Progress
from xgem.utils.signals import interruptible

app = typer.Typer(
    help="Run published experiments: a plan, steps that resume, the paper's tables.",
    no_args_is_help=True,
    add_completion=False,
)

EXPERIMENTS: Final = {
    "multi-prompt": "XGeM: multi-prompt against single-prompt training, route by route (Tables 2 to 6).",
    "alignment": "XGeM: outputs with and without alignment, its InfoNCE as published and xgem's (Table 7, Fig. 5).",
    "anonymisation": "XGeM: classifiers of synthetic images against those of real ones (Table 8).",
    "imbalance": "XGeM: rare classes topped up with synthetic images (Tables 9 and 10).",
    "scarcity": "XGeM: few real images with more and more synthetic ones (Table 11).",
    "report-utility": "CheXGenBench: report models of synthetic pairs against one of real pairs (Table 5).",
    "augmentation": "ChexGen: real and synthetic images in four tasks (Extended Data Tables 6 to 9).",
    "pretraining": "ChexGen: pretraining on synthetic images, 1 to 100 % of the real ones (Fig. 4).",
    "few-shot": "ChexGen: pretraining on synthetic images, then 1, 5 and 10 real ones a class (Fig. 4).",
    "fairness": "ChexGen: bias found by synthetic test images, and mitigated by synthetic training images (Fig. 5).",
}
"""What each experiment is; their plans are in ``xgem/configs/experiments``."""


class SizeChoice(StrEnum):
    """Sizes of an experiment."""

    debug = "debug"
    paper = "paper"


@app.command(name="list")
def listed() -> None:
    """List the experiments, with their papers, tables and sizes."""
    from xgem.experiments.papers.plans import SIZES, read_experiment

    for name in EXPERIMENTS:
        plan = read_experiment(name)
        sizes = ", ".join(size for size in SIZES if getattr(plan, size))
        typer.echo(f"{name:15} {plan.source:40} {sizes:13} {plan.title}")
    typer.echo(f"{'chexgenbench':15} {'CheXGenBench':40} {', '.join(SIZES):13} Several models in all its measures")


def _command(name: str) -> Callable[..., None]:
    """The command of one experiment."""

    def run(
        out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder of the experiment.")],
        plan: Annotated[
            Path | None, typer.Argument(metavar="[PLAN]", help="A plan of your own.", show_default="xgem's")
        ] = None,
        size: Annotated[
            SizeChoice,
            typer.Option("--size", help="debug: minutes on a CPU, numbers mean nothing; paper: the paper's."),
        ] = SizeChoice.debug,
        data: Annotated[
            Path | None, typer.Option("--data", metavar="MANIFEST", help="Manifest.", show_default="the plan's")
        ] = None,
        changes: Annotated[
            list[str] | None,
            typer.Option(
                "--set", metavar="KEY=VALUE", help="Another value of a setting: bootstrap=100; may be repeated."
            ),
        ] = None,
        device: Device = None,
        progress: Progress = True,
    ) -> None:
        from xgem.experiments.papers.run import run_experiment

        options = {"plan": plan, "data": data, "changes": changes or (), "device": device, "progress": progress}
        with interruptible("finished steps are kept, and the same command goes on"):
            table = run_experiment(name, out, size=size.value, **options)
        typer.echo(table.read_text(encoding="utf-8"), nl=False)
        typer.echo(f"{table.parent}: table.md, table.csv, and the records of all steps", err=True)

    run.__doc__ = (
        f"{EXPERIMENTS[name]}\n\nWhere it was stopped, the same command goes on; finished steps are not done again. "
        "FOLDER receives table.md and table.csv, with the published figures beside those of the run."
    )
    return run


for _name in EXPERIMENTS:
    app.command(name=_name)(_command(_name))


@app.command()
def chexgenbench(
    out: Annotated[Path, typer.Option("--out", metavar="FOLDER", help="Folder of the benchmark.")],
    plan: Annotated[
        Path | None, typer.Argument(metavar="[PLAN]", help="A plan of your own.", show_default="xgem's")
    ] = None,
    size: Annotated[SizeChoice, typer.Option("--size", help="Which of xgem's plans.")] = SizeChoice.debug,
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
        done = run(read_bench(plan, size=size.value), out, device=device, progress=progress)
    typer.echo(f"{out}: {done.measured} parts measured, {len(done.records)} models; see {out / 'README.md'}")
