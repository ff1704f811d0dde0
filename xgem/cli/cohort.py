"""``xgem cohort``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xgem.cli.options import Compile, Progress
from xgem.types import InputError
from xgem.utils.signals import interruptible

if TYPE_CHECKING:
    from xgem.cohort.items import Cohort


Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder to write: new, empty, or started with the same plan."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Check the plan and print what it would generate.")]
Shard = Annotated[
    str | None,
    typer.Option("--shard", metavar="I/N", help="Generate only part I of N; set automatically under torchrun."),
]
Slurm = Annotated[bool, typer.Option("--slurm", help="Submit a SLURM job with one shard per task (needs submitit).")]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, help="Number of CPU threads.", show_default="that of the earlier run, or PyTorch's"
    ),
]


def cohort(
    plan: Annotated[Path, typer.Argument(metavar="PLAN", help="Plan of the cohort, a YAML file.")],
    out: Out = None,
    dry_run: DryRun = False,
    shard: Shard = None,
    collect: Annotated[bool, typer.Option("--collect", help="Write only the final files; generate nothing.")] = False,
    slurm: Slurm = False,
    partition: Annotated[str | None, typer.Option("--partition", help="SLURM partition.")] = None,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Number of nodes of the SLURM job.")] = 1,
    tasks: Annotated[int, typer.Option("--tasks", min=1, help="Shards per node.")] = 1,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="GPUs per node.", show_default="none")] = None,
    timeout: Annotated[int, typer.Option("--timeout", min=1, help="Time limit of the SLURM job in minutes.")] = 60,
    device: Annotated[
        str | None, typer.Option("--device", help="Device: cpu, cuda, cuda:1 ...", show_default="a GPU, or cpu")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", help="Number format: float32, bfloat16 or float16.", show_default="float32")
    ] = None,
    use_compile: Compile = False,
    threads: Threads = None,
    progress: Progress = True,
) -> None:
    """Generate a synthetic data set from a plan: findings x demographics x views, or matched to a manifest.

    xgem cohort plan.yaml --out cohort

    After an interruption, the same command resumes and gives identical files. Shards can run anytime, anywhere;
    the last to finish writes manifest.parquet, metadata.csv, dataset.json and cohort.json.
    """
    from xgem.cohort.plan import read_plan

    if sum((dry_run, collect, slurm, shard is not None)) > 1:
        raise InputError("--dry-run, --collect, --slurm and --shard: expected one of them")
    if out is None and not dry_run:
        raise InputError("--out is missing: expected a folder for the cohort (or --dry-run)")
    cohort_plan = read_plan(plan)
    if dry_run:
        from xgem.cohort.run import open_cohort

        _show(open_cohort(cohort_plan, device=device, dtype=dtype, compile=use_compile)[0])
        return
    assert out is not None
    if collect:
        from xgem.cohort.collect import collect as write_final
        from xgem.cohort.folder import Folder
        from xgem.cohort.items import expand

        _say(out, write_final(expand(cohort_plan), Folder(out)))
        return
    if slurm:
        from xgem.cohort.run import open_cohort
        from xgem.cohort.submit import Work
        from xgem.utils.slurm import Resources, submit

        # The node decides on the device; what the model can do is the same everywhere.
        open_cohort(cohort_plan, device="cpu", compile=use_compile)
        work = Work(str(plan.absolute()), str(out.absolute()), device, dtype, use_compile, threads)
        logs = out.with_name(f"{out.name}.slurm").absolute()
        wanted = Resources(nodes=nodes, tasks=tasks, gpus=gpus, timeout_min=timeout, partition=partition)
        job = submit(work, "xgem-cohort", logs, wanted)
        typer.echo(f"job {job.job_id}: {nodes * tasks} shards into {out}, logs in {logs}")
        return
    from xgem.cohort.run import run
    from xgem.utils.shards import environment_shard, parse_shard

    part = environment_shard() if shard is None else parse_shard(shard)
    where: dict[str, Any] = {"device": device, "dtype": dtype, "compile": use_compile, "threads": threads}
    with interruptible("finished batches are kept, and the same command goes on"):
        done = run(cohort_plan, out, shard=part, progress=progress, **where)
    if done.counts is None:
        typer.echo(f"{out}: {done.made} studies made, {done.missing} are left to other shards")
    else:
        _say(out, done.counts)


def _say(out: Path, counts: Any) -> None:
    parts = [f"{counts.studies} studies", *(f"{n} {view}" for view, n in counts.images.items())]
    typer.echo(f"{out}: {', '.join(parts)}, {counts.reports} reports")


def _show(planned: Cohort) -> None:
    """The table of cells and counts."""
    from xgem.cohort.collect import cells

    lines = cells(planned)
    names = [name for name in lines[0] if any(line[name] is not None for line in lines)]
    rows = [names, *([_plain(line[name]) for name in names] for line in lines)]
    widths = [max(len(row[k]) for row in rows) for k in range(len(names))]
    for row in rows:
        typer.echo("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip())
    for reason, count in planned.left_out.items():
        typer.echo(f"left out: {count} studies {reason}")
    typer.echo(f"{len(planned)} studies in {len(planned.batches)} batches of up to {planned.plan.batch_size}")


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(dict.fromkeys(map(_plain, value)))
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)
