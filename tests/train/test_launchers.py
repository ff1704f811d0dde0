"""Trainings as users start them on several processes: by torchrun and accelerate launch; killed, stopped, refused."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.train.test_golden_losses import write_data
from tests.train.test_processes import free_port
from xgem.checkpoints.store import read_index, verify
from xgem.configs.preset import load_preset
from xgem.train.stages import planned

KILLS = int(os.environ.get("XGEM_KILLS", "0"))
LIMIT = 400.0
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "20",
            "--monitor-interval", "0.2")  # fmt: skip
ACCELERATE = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
              "--mixed_precision", "no", "--dynamo_backend", "no")  # fmt: skip


def command(launcher: tuple[str, ...], *arguments: object) -> list[str]:
    port = () if "--standalone" in launcher else ("--main_process_port", str(free_port()))
    return [sys.executable, *launcher, *port, "--module", "xgem", "train", *map(str, arguments)]


@contextmanager
def started(launcher: tuple[str, ...], folder: Path, *arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """A launcher that runs; what it says goes to ``launcher.log``."""
    project = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": project, "OMP_NUM_THREADS": "1"}
    with (folder / "launcher.log").open("ab") as log:
        process = subprocess.Popen(
            command(launcher, *arguments), env=environment, stdout=log, stderr=log, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                for one in [*workers(process), process.pid]:  # torchrun gives each worker a session of its own
                    os.kill(one, signal.SIGKILL)
                process.wait()


def said(folder: Path) -> str:
    return (folder / "launcher.log").read_text(errors="replace")


def workers(launcher: subprocess.Popen[bytes]) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(launcher.pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def arguments_of(preset: str, data: Path, out: Path, *more: object) -> list[object]:
    return ["all", "--preset", preset, "--data", data, "--out", out, "--no-progress", *more]


def files_of(root: Path) -> dict[str, bytes]:
    verify(root)
    assert read_index(root).components
    return {str(file.relative_to(root)): file.read_bytes() for file in sorted(root.glob("*/model.safetensors"))}


def checkpoints_of(root: Path, preset: str) -> int:
    """How many steps are on the disk, of all stages together."""
    total = 0
    for stage in planned(load_preset(preset)):
        steps = [int(path.name.removeprefix("step-")) for path in root.glob(f"training/{stage}/checkpoints/step-*")]
        total += max(steps, default=0)
    return total


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not KILLS, reason="takes minutes: set XGEM_KILLS to a number of kills")
@pytest.mark.parametrize("preset", ["debug", "debug-chexgen"])
def test_killed_by_the_machine_and_restarted_by_torchrun(preset: str, debug_checkpoint: Path, tmp_path: Path) -> None:
    """Any worker is killed at random moments: the run ends as the unbroken one of two processes."""
    data, whole, broken = write_data(tmp_path), tmp_path / "whole", tmp_path / "broken"
    options = [f"--set={stage}.checkpoint_every=1" for stage in planned(load_preset(preset))]
    if preset == "debug-chexgen":  # trains neither codec nor text encoder
        options += ["--init", debug_checkpoint]
    with started(TORCHRUN, tmp_path, *arguments_of(preset, data, whole, *options)) as launcher:
        assert launcher.wait(LIMIT) == 0, said(tmp_path)
    steps, rng = checkpoints_of(whole, preset), random.Random(20)
    moments = sorted(rng.sample(range(1, steps), KILLS))
    with started(TORCHRUN, tmp_path, *arguments_of(preset, data, broken, "--resume", *options)) as launcher:
        for moment in moments:
            wait_for(lambda moment=moment: checkpoints_of(broken, preset) >= moment, launcher, tmp_path)
            time.sleep(rng.uniform(0, 1))  # into whatever comes next: a step, a validation, saving a component
            running = workers(launcher)
            os.kill(rng.choice(running), signal.SIGKILL)
            wait_for(lambda old=set(running): len(set(workers(launcher)) - old) == 2, launcher, tmp_path)
        assert launcher.wait(LIMIT) == 0, said(tmp_path)
    assert said(tmp_path).count("(exitcode: -9)") == KILLS
    assert files_of(broken) == files_of(whole)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(not KILLS, reason="takes minutes: set XGEM_KILLS to a number of kills")
def test_sharded_under_accelerate_launch_and_stopped_by_a_signal(toy: Path, tmp_path: Path) -> None:
    """SIGTERM ends all processes with a checkpoint in parts, from which they go on; a second run is refused."""
    options = ["image-vae", "--preset", "debug", "--data", toy, "--out", tmp_path / "out", "--no-progress"]
    options += ["--sharding", "full", "--steps", 2000, "--set", "image-vae.checkpoint_every=5"]
    checkpoints = tmp_path / "out/training/image-vae/checkpoints"
    with started(ACCELERATE, tmp_path, *options) as launcher:
        wait_for(lambda: len(list(checkpoints.glob("step-*"))) > 1, launcher, tmp_path)
        (first, *_) = workers(launcher)
        os.kill(first, signal.SIGTERM)
        assert launcher.wait(LIMIT) != 0
    stopped = max(int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*"))
    assert f"stopped by SIGTERM at step {stopped} of 2000; --resume goes on" in said(tmp_path)
    assert list(checkpoints.glob(f"step-{stopped:08d}/shard-0000[12]-*.safetensors"))
    with started(TORCHRUN, tmp_path, *options, "--resume") as launcher:
        wait_for(lambda: not (checkpoints / f"step-{stopped:08d}").exists(), launcher, tmp_path)
        refused = subprocess.run(
            [sys.executable, "-m", "xgem", "train", *map(str, options), "--resume", "--sharding", "no"],
            capture_output=True, text=True,
        )  # fmt: skip
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[-1].startswith("xgem: error: ")
        assert "another run is training here" in refused.stderr


def wait_for(happened: Callable[[], object], launcher: subprocess.Popen[bytes], folder: Path) -> None:
    end = time.monotonic() + LIMIT
    while not happened():
        assert launcher.poll() is None, said(folder)
        assert time.monotonic() < end, said(folder)
        time.sleep(0.05)


@pytest.mark.timeout(300)
def test_what_processes_cannot_do_together_is_said_once(toy: Path, tmp_path: Path) -> None:
    options = ["image-vae", "--preset", "debug", "--data", toy, "--out", tmp_path / "out", "--no-progress"]
    once = tuple("0" if part == "20" else part for part in TORCHRUN)
    with started(once, tmp_path, *options, "--set", "image-vae.batch_size=3") as launcher:
        assert launcher.wait(LIMIT) != 0
    assert said(tmp_path).count("xgem: error: ") == 1, said(tmp_path)
    assert "a batch of 3 cannot be divided evenly among 2 processes" in said(tmp_path)
