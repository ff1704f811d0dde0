"""``xgem submit``: commands as jobs of a SLURM cluster."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, cast

import typer

from xgem.types import InputError, StoppedError

app = typer.Typer(no_args_is_help=True, add_completion=False)


@app.callback()
def _group() -> None:  # pyright: ignore[reportUnusedFunction]
    """Queue a command as a job of a SLURM cluster."""


@dataclass(frozen=True)
class Training:
    """What every process of the job does: the command, together with the others.

    Pre-empted or out of time, the job is queued again and goes on, and so it does where SLURM itself starts it again.
    """

    arguments: tuple[str, ...]
    again: bool = False

    def __call__(self) -> None:
        from xgem.cli import app as xgem
        from xgem.utils.progress import Shown, showing

        again = self.again or int(os.environ.get("SLURM_RESTART_COUNT") or 0) > 0
        arguments = [*self.arguments, *(["--resume"] if again and "--resume" not in self.arguments else [])]
        try:
            with showing(Shown.EVERYWHERE):  # a line now and then in the job's log
                typer.main.get_command(xgem).main(["train", *arguments], prog_name="xgem", standalone_mode=False)
        except StoppedError:
            # By SIGTERM, which submitit ignores: of itself SLURM would take the job for done. Its own signal queues it
            signal.raise_signal(signal.SIGUSR2)

    def checkpoint(self) -> Any:
        """What submitit queues in the place of a job that was stopped."""
        import submitit

        return submitit.helpers.DelayedSubmission(replace(self, again=True))


@app.command("train", context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def submit_train(
    context: typer.Context,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Number of nodes.")] = 1,
    gpus: Annotated[
        int | None, typer.Option("--gpus", min=1, help="GPUs per node, with a process each.", show_default="none")
    ] = None,
    tasks: Annotated[
        int | None,
        typer.Option("--tasks", min=1, help="Processes per node, without GPUs.", show_default="one per GPU, or 1"),
    ] = None,
    cpus: Annotated[
        int | None, typer.Option("--cpus", min=1, help="CPU cores per process.", show_default="the cluster's")
    ] = None,
    partition: Annotated[str | None, typer.Option("--partition", help="SLURM partition.")] = None,
    timeout: Annotated[int, typer.Option("--timeout", min=1, help="Time limit of the job in minutes.")] = 60,
    logs: Annotated[
        Path | None, typer.Option("--logs", help="Folder for the job's logs.", show_default="OUT.slurm")
    ] = None,
) -> None:
    """Queue a training on several nodes; all other options are those of `xgem train`.

    xgem submit train all --preset paper --data mimic.parquet --out runs/paper --nodes 4 --gpus 8 --partition gpu

    All processes train together. Pre-empted or out of time, the job stops with a checkpoint, is queued again and goes
    on, until the training is finished.
    """
    from xgem.utils.slurm import Resources, submit

    if gpus is not None and tasks not in (None, gpus):
        raise InputError(f"--tasks {tasks} --gpus {gpus}: a process trains on one GPU: leave --tasks out")
    asked = _checked(context.args)
    out = cast(Path, asked["out"]).absolute()
    place = (logs or out.with_name(f"{out.name}.slurm")).absolute()
    count = gpus or tasks or 1
    wanted = Resources(nodes=nodes, tasks=count, gpus=gpus, cpus=cpus, timeout_min=timeout, partition=partition)
    job = submit(Training(tuple(context.args)), "xgem-train", place, wanted)
    typer.echo(f"job {job.job_id}: {nodes * count} processes into {out}, logs in {place}")


def _checked(arguments: list[str]) -> dict[str, Any]:
    """The values of a training's options, as the command itself reads them; its errors are raised here already."""
    from xgem.cli import app as xgem

    group: Any = typer.main.get_command(xgem)
    command = group.get_command(None, "train")
    return command.make_context("xgem train", list(arguments)).params
