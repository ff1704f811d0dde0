"""Training in processes of its own: killed by SIGKILL and resumed; two that gather each other's negatives."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import runpy
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from xgem.checkpoints.store import read_index, verify
from xgem.cli import main
from xgem.configs.preset import load_preset
from xgem.train.stages import planned

KILLS = 3
LIMIT = 500.0  # seconds; only a hung process comes near it


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., BaseProcess]]:
    """Starts a function in a process that a server forks: torch is imported once for all of them."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["xgem.cli", "xgem.cli.train", "xgem.train.stages", "torch.utils.tensorboard"])
    started: list[BaseProcess] = []

    def go(function: Callable[..., object], *arguments: object) -> BaseProcess:
        process = context.Process(target=function, args=arguments, daemon=True)
        process.start()
        started.append(process)
        return process

    yield go
    for process in started:
        if process.is_alive():
            process.kill()
            process.join()


# ------------------------------------------------------------------------------------------- killed and resumed


def arguments(toy: Path, out: Path, *more: str) -> list[str]:
    options = ["--preset", "debug", "--data", str(toy), "--out", str(out), "--no-progress", "--threads", "1"]
    return ["train", "all", *options, *more]


def moments(rng: random.Random) -> list[tuple[str, int]]:
    """Stages and steps, in the order in which a run comes by them; far enough from its end to be killed after each."""
    every = [(stage, step) for stage in planned(load_preset("debug")) for step in (3, 6, 9, 12)][:-3]
    return [every[i] for i in sorted(rng.sample(range(len(every)), KILLS))]


def wait_for(folder: Path, step: int, process: BaseProcess) -> None:
    """Until the folder has a checkpoint of this step or a later one."""
    end = time.monotonic() + LIMIT
    while not any(int(path.name.removeprefix("step-")) >= step for path in folder.glob("step-*")):
        assert process.exitcode is None, f"ended with {process.exitcode} before step {step} of {folder.parent.name}"
        assert time.monotonic() < end, f"step {step} of {folder.parent.name} did not come"
        time.sleep(0.005)


def files_of(root: Path, pattern: str) -> dict[str, bytes]:
    found = {str(file.relative_to(root)): file.read_bytes() for file in root.glob(pattern) if file.is_file()}
    assert found
    return found


@pytest.mark.timeout(600)
def test_killed_at_random_moments_it_ends_as_the_unbroken_run(
    toy: Path, tmp_path: Path, start: Callable[..., BaseProcess], capfd: pytest.CaptureFixture[str]
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    unbroken = start(main, arguments(toy, whole))
    rng = random.Random(20)
    for stage, step in moments(rng):
        process = start(main, arguments(toy, broken, "--resume"))
        wait_for(broken / "training" / stage / "checkpoints", step, process)
        time.sleep(rng.uniform(0, 0.15))  # into whatever comes next: a step, a validation, saving a component
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    last = start(main, arguments(toy, broken, "--resume"))
    for process in (last, unbroken):
        process.join(LIMIT)
        assert process.exitcode == 0, capfd.readouterr().err

    stages = planned(load_preset("debug"))
    for root in (whole, broken):
        verify(root)
    assert dict(read_index(broken).components) == dict(read_index(whole).components)  # holds every file's hash
    for pattern in ("*/model.safetensors", "*/config.json", "*/*tokenizer/*"):
        assert files_of(broken, pattern) == files_of(whole, pattern)
    for name in ("model", "ema", "optimizer"):
        pattern = f"training/*/checkpoints/step-00000012/{name}.safetensors"
        assert len(files_of(whole, pattern)) == len(stages)
        assert files_of(broken, pattern) == files_of(whole, pattern)
    for stage in stages:
        logs = []
        for root in (whole, broken):
            lines = (root / "training" / stage / "log.jsonl").read_text(encoding="utf-8").splitlines()
            logs.append([{k: v for k, v in json.loads(line).items() if k != "steps_per_s"} for line in lines])
        assert logs[0] == logs[1], stage
    # What killed saves left behind was cleaned up.
    assert list(broken.glob("training/*/checkpoints/.step-*")) == []
    assert [path for name in read_index(broken).components for path in broken.glob(f".{name}.*")] == []


# ----------------------------------------------------------------------------------------------- two processes


def test_gathered_negatives_are_those_of_one_process(tmp_path: Path, start: Callable[..., BaseProcess]) -> None:
    """Loss and gradients of two processes with half of the studies each equal those of one with all of them."""
    script = str(Path(__file__).with_name("two_processes.py"))
    workers = [start(runpy.run_path, script, {"TASK": (rank, tmp_path)}, "__worker__") for rank in range(2)]
    shared: dict[str, Any] = runpy.run_path(script)
    stage = shared["make_stage"]()
    loss, terms = stage.loss(stage.module, shared["batch_of"](stage, 0, 1))
    loss.backward()
    for worker in workers:
        worker.join(LIMIT)
        assert worker.exitcode == 0
    found = [load_file(tmp_path / f"{rank}.safetensors") for rank in range(2)]

    pairs = {"frontal-lateral", "frontal-report", "lateral-report"}
    assert pairs < set(terms)
    for name in pairs:
        for one in found:
            torch.testing.assert_close(one[f"term.{name}"], terms[name])
    torch.testing.assert_close((found[0]["loss"] + found[1]["loss"]) / 2, loss.detach())
    checked = 0
    for name, parameter in stage.module.named_parameters():
        if parameter.grad is None:
            continue
        for one in found:
            torch.testing.assert_close(one[f"grad.{name}"], parameter.grad, rtol=1e-4, atol=1e-6, msg=name)
        checked += 1
    assert checked > 10
