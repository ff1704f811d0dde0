"""Trainings and cohorts as jobs of a real SLURM cluster: this machine, with a controller, a node and munge of its own.

Skipped where Debian's packages ``slurm-wlm`` and ``munge`` are not installed, or for any user but root.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cohort.test_resume import tree
from tests.train.conftest import make_rows
from tests.train.test_processes import free_port
from xgem.cohort.plan import read_plan
from xgem.cohort.run import run
from xgem.data.manifest import Manifest

LIMIT = 240.0
XGEM = (sys.executable, "-m", "xgem")
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol")
MISSING = [name for name in PROGRAMS if shutil.which(name) is None]
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(MISSING) or os.geteuid() != 0, reason=f"needs root and {', '.join(MISSING or PROGRAMS)}"),
]

CONF = """
ClusterName=xgem
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/controller
SlurmdSpoolDir={folder}/node
SlurmctldPidFile={folder}/controller.pid
SlurmdPidFile={folder}/node.pid
SlurmctldLogFile={folder}/controller.log
SlurmdLogFile={folder}/node.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1,requeue_setup_env_fail
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=10
PartitionName=abrupt Nodes={host} PriorityTier=1 GraceTime=0
PartitionName=high Nodes={host} PriorityTier=10
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, project: Path) -> Iterator[Callable[..., str]]:
    """A running cluster; calls a program of SLURM or of xgem in its environment, and returns what it prints."""
    folder = tmp_path_factory.mktemp("slurm")
    for parent in (folder, *folder.parents[:3]):
        parent.chmod(0o755)  # munged wants its socket where everybody can look
    for name in ("controller", "node"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o600)
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(folder=folder, host=host, ports=(free_port(), free_port())))
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"), "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1",
    }  # fmt: skip

    def call(*command: object) -> str:
        ran = subprocess.run([*map(str, command)], env=environment, cwd=folder, capture_output=True, text=True)
        assert ran.returncode == 0, f"{command}: {ran.stdout}{ran.stderr}"
        return ran.stdout

    files = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "log", "seed")]
    call("munged", "--force", f"--socket={folder}/munge.socket", *files)
    try:
        call("slurmctld", "-c")
        call("slurmd", "-c")
        wait(lambda: "idle" in call("sinfo", "--noheader", "--format=%t"), "the node")
        yield call
    finally:
        for name in ("node", "controller", "munge"):
            pid = folder / f"{name}.pid"
            if pid.is_file():
                subprocess.run(["kill", pid.read_text().strip()])


def wait(happened: Callable[[], Any], what: str) -> None:
    end = time.monotonic() + LIMIT
    while not happened():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.1)


def job_of(said: str) -> str:
    """The number in ``job 7: 2 processes into ...``."""
    return said.split()[1].rstrip(":")


def state_of(call: Callable[..., str], job: str) -> dict[str, str]:
    return dict(part.split("=", 1) for part in call("scontrol", "show", "job", job).split() if "=" in part)


def pre_empt(call: Callable[..., str], job: str) -> None:
    """Have a more important job take the node from ``job``, and wait until that one is queued again."""
    call("sbatch", "--partition=high", "--ntasks=2", "--output=/dev/null", "--wrap=true")
    wait(lambda: state_of(call, job)["JobState"] == "PENDING", f"job {job} in the queue again")
    call("scontrol", "update", f"JobId={job}", "StartTime=now")  # SLURM would wait for two minutes
    wait(lambda: int(state_of(call, job)["Restarts"]) > 0, f"the second start of job {job}")


def logs_of(job: str, folder: Path) -> str:
    return "\n".join(file.read_text(errors="replace") for file in sorted(folder.glob(f"{job}_*_log.*")))


def ended(call: Callable[..., str], job: str, logs: Path) -> None:
    """Wait until a job is done, as it should be."""
    wait(lambda: state_of(call, job)["JobState"] not in {"PENDING", "RUNNING", "COMPLETING", "CONFIGURING"}, "its end")
    assert state_of(call, job)["JobState"] == "COMPLETED", logs_of(job, logs)[-5000:]


def test_a_training_that_is_pre_empted_goes_on_to_the_same_losses(cluster: Callable[..., str], tmp_path: Path) -> None:
    rows = make_rows(tmp_path, "train", 21) + make_rows(tmp_path, "val", 7)
    Manifest(tuple(rows), tmp_path).write(tmp_path / "toy.jsonl")
    losses = []
    for name, stop in (("whole", False), ("broken", True)):
        out = tmp_path / name
        said = cluster(
            *XGEM, "submit", "train", "image-vae", "--preset", "debug", "--data", tmp_path / "toy.jsonl", "--out", out,
            "--steps", 60, "--set", "image-vae.checkpoint_every=10", "--tasks", 2, "--partition", "low",
            "--no-progress",
        )  # fmt: skip
        job = job_of(said)
        assert said == f"job {job}: 2 processes into {out}, logs in {out}.slurm\n"
        if stop:
            folder = out / "training" / "image-vae" / "checkpoints"
            wait(lambda folder=folder: list(folder.glob("step-*")), "a checkpoint")
            pre_empt(cluster, job)
        ended(cluster, job, Path(f"{out}.slurm"))
        assert ("stopped by SIG" in logs_of(job, Path(f"{out}.slurm"))) == stop
        losses.append((out / "image_vae" / "model.safetensors").read_bytes())
    assert losses[0] == losses[1]


def test_a_cohort_that_is_pre_empted_goes_on_to_the_same_files(
    cluster: Callable[..., str], write_plan: Any, tmp_path: Path
) -> None:
    findings = ["Edema", "Fracture"]
    plan = write_plan(outputs=["frontal"], balanced={"findings": findings, "count": 60}, num_inference_steps=100)
    out = tmp_path / "broken"
    job = job_of(cluster(*XGEM, "cohort", plan, "--out", out, "--slurm", "--tasks", 2, "--partition", "abrupt"))
    wait(lambda: list(out.glob("images/**/*.png")), "an image")
    pre_empt(cluster, job)
    ended(cluster, job, Path(f"{out}.slurm"))
    run(read_plan(plan), tmp_path / "whole", progress=False)
    assert tree(out) == tree(tmp_path / "whole")
