"""Jobs of a SLURM cluster, by submitit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from xgem.types import InputError, OutputError

_MOST_TIMEOUTS = 10_000
"""How often a job that its time limit has stopped is queued again: what it does goes on, and comes to an end."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What a job asks for: ``nodes`` with ``tasks`` processes and ``gpus`` GPUs each (None: no GPU)."""

    nodes: int = 1
    tasks: int = 1
    gpus: int | None = None
    cpus: int | None = None
    """CPU cores of a process; None: the cluster's default."""
    timeout_min: int = 60
    partition: str | None = None


def submit(work: Callable[[], Any], name: str, logs: Path, wanted: Resources, *, cluster: str = "slurm") -> Any:
    """Queue ``work``, which every process of the job calls, and return submitit's job.

    Args:
        work: where it has ``checkpoint``, a job that was pre-empted or ran out of time is queued again.
        name: the job's name.
        logs: a folder that every node sees.
        cluster: ``slurm``, or ``local`` for processes of this machine.

    Raises:
        InputError: submitit is not installed, or there is no such cluster here.
        OutputError: the logs' folder cannot be written.
    """
    try:
        import submitit
    except ImportError:
        raise InputError("jobs of SLURM need submitit: pip install submitit") from None
    parameters: dict[str, Any] = {
        "name": name,
        "nodes": wanted.nodes,
        "tasks_per_node": wanted.tasks,
        "timeout_min": wanted.timeout_min,
        "gpus_per_node": wanted.gpus,
        "cpus_per_task": wanted.cpus,
        "slurm_partition": wanted.partition,
    }
    try:
        executor = submitit.AutoExecutor(folder=logs, cluster=cluster, slurm_max_num_timeout=_MOST_TIMEOUTS)
        executor.update_parameters(**{key: value for key, value in parameters.items() if value is not None})
        return executor.submit(work)
    except (RuntimeError, FileNotFoundError) as error:
        raise InputError(f"the job cannot be queued ({' '.join(str(error).split())[:200]})") from None
    except OSError as error:
        raise OutputError(f"{logs}: cannot be written ({error.strerror or error})") from error
