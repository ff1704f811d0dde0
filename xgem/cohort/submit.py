"""A cohort's shards as tasks of one SLURM job, by submitit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


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
