"""A cohort's shards as tasks of one SLURM job, by submitit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xgem.types import InputError, OutputError


@dataclass(frozen=True)
class Work:
    """What every task does: its shard of the plan. Preempted or out of time, submitit queues the job again."""

    plan: str
    out: str
    device: str | None
    dtype: str | None
    compile: bool
    threads: int | None

    def __call__(self) -> int:
        """Make the task's shard; returns how many studies that was."""
        import submitit

        from xgem.cohort.plan import read_plan
        from xgem.cohort.run import run
        from xgem.utils.progress import Shown, showing
        from xgem.utils.shards import Shard

        task = submitit.JobEnvironment()
        shard = Shard(task.global_rank, task.num_tasks, task.local_rank)
        options: dict[str, Any] = {"device": self.device, "dtype": self.dtype, "compile": self.compile}
        with showing(Shown.EVERYWHERE):  # a line now and then in the job's log
            return run(read_plan(self.plan), self.out, shard=shard, threads=self.threads, **options).made

    def checkpoint(self) -> Any:
        """What submitit queues in the place of a job that was stopped: the same work, which goes on."""
        import submitit

        return submitit.helpers.DelayedSubmission(self)


def submit(
    work: Work,
    *,
    logs: Path,
    partition: str | None = None,
    nodes: int = 1,
    tasks: int = 1,
    gpus: int | None = None,
    timeout_min: int = 60,
    cluster: str = "slurm",
) -> Any:
    """Queue the work as ``nodes`` x ``tasks`` shards, and return submitit's job.

    Args:
        logs: a folder that every node sees.
        gpus: of a node; none by default.
        cluster: ``slurm``, or ``local`` for processes of this machine.

    Raises:
        InputError: submitit is not installed, or there is no such cluster here.
        OutputError: the logs' folder cannot be written.
    """
    try:
        import submitit
    except ImportError:
        raise InputError("--slurm needs submitit: pip install submitit") from None
    parameters: dict[str, Any] = {"nodes": nodes, "tasks_per_node": tasks, "timeout_min": timeout_min}
    parameters |= {"name": "xgem-cohort"} | ({} if gpus is None else {"gpus_per_node": gpus})
    parameters |= {} if partition is None else {"slurm_partition": partition}
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster)
        executor.update_parameters(**parameters)
        return executor.submit(work)
    except (RuntimeError, FileNotFoundError) as error:
        raise InputError(f"--slurm: the job cannot be queued ({' '.join(str(error).split())[:200]})") from None
    except OSError as error:
        raise OutputError(f"{logs}: cannot be written ({error.strerror or error})") from error
