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
    "multi-prompt": "XGeM: multi-prompt against single-prompt training, route by route (Tables 2 to 6 and A1).",
    "alignment": "XGeM: outputs with and without alignment, its InfoNCE as published and xgem's (Table 7 and Fig. 5).",
    "anonymisation": "XGeM: classifiers of synthetic images against those of real ones (Tables 8 and A4).",
    "imbalance": "XGeM: rare classes topped up with synthetic images (Tables 9, 10 and A5).",
    "scarcity": "XGeM: few real images with more and more synthetic ones (Tables 11 and A6).",
    "report-utility": "CheXGenBench: report models of synthetic pairs against one of real pairs (Table 5).",
    "augmentation": "ChexGen: real and synthetic images in four tasks (Extended Data Tables 6 to 9).",
    "pretraining": "ChexGen: pretraining on synthetic images (Fig. 4 and Extended Data Figs. 4 and 6).",
    "few-shot": "ChexGen: pretraining on synthetic images, then few real ones (Fig. 4 and Extended Data Fig. 5).",
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

    plans = [read_experiment(name) for name in EXPERIMENTS]
    lines = [
        (plan.name, plan.source, ", ".join(size for size in SIZES if getattr(plan, size)), plan.title) for plan in plans
    ]
    lines.append(("chexgenbench", "CheXGenBench", ", ".join(SIZES), "Several models in all its measures"))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


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
    from xgem.experiments.chexgenbench.parts import REAL_MODEL
    from xgem.experiments.chexgenbench.plan import read_bench
    from xgem.experiments.chexgenbench.run import run

    with interruptible("what is finished is kept, and the same command goes on"):
        done = run(read_bench(plan, size=size.value), out, device=device, progress=progress)
    number = len([name for name in done.records if name != REAL_MODEL])
    images = " and the real images" if REAL_MODEL in done.records else ""
    of = f"{number} model{'' if number == 1 else 's'}{images}"
    typer.echo(
        f"{out}: {done.measured} part{'' if done.measured == 1 else 's'} measured; {of}; see {out / 'README.md'}"
    )
