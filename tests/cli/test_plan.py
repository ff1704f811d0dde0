"""``xgem plan``."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

PARTS = {"weights", "frozen", "buffers", "gradients", "optimizer", "averages", "buckets", "gathered", "batch",
         "activations", "peak"}  # fmt: skip


def test_every_stage_is_planned(xgem: Any) -> None:
    ran = xgem("plan", "debug-chexgen", "--gpus", 2, "--micro-batch-size", 1, "--sharding", "full", "--json")
    assert ran.code == 0, ran.err
    found = json.loads(ran.out)
    assert found["assumed"]["sharding"] == "full"
    assert list(found["stages"]) == ["frontal", "control"]
    for one in found["stages"].values():
        assert set(one["memory"]) == PARTS
        assert (one["micro_batch_size"], one["greatest_micro_batch"], one["fits"]) == (1, 2, True)
        assert min(one["flops"], one["samples_per_second"], one["hours"], *one["disk"].values()) > 0


def test_parts_are_those_of_a_node_in_a_hybrid(xgem: Any) -> None:
    def memory(*options: Any) -> dict[str, int]:
        ran = xgem("plan", "debug-chexgen", "--gpus", 4, "--json", *options)
        assert ran.code == 0, ran.err
        return json.loads(ran.out)["stages"]["control"]["memory"]

    hybrid, no = memory("--sharding", "hybrid", "--nodes", 2), memory("--nodes", 2)
    assert hybrid["weights"] == pytest.approx(no["weights"] / 2, abs=1)
    assert hybrid["frozen"] == no["frozen"]
    assert "4 GPUs of 2 nodes" in xgem("plan", "debug-chexgen", "--gpus", 4, "--nodes", 2, "--sharding", "hybrid").out


def test_a_plan_as_tables_says_what_is_assumed(xgem: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    ran = xgem("plan", "debug-chexgen", "--gpus", 1, "--share", 0.3, "--peak", 312, "--checkpoint-activations")
    assert ran.code == 0, ran.err
    for said in (
        "frontal",
        "control",
        "frozen",
        "Time at 0.3 of 312 TFLOP/s",
        "bf16",
        "60 tokens",
        "activations, GiB",
        "of them again",
    ):
        assert said in ran.out


def test_where_nothing_fits_it_says_what_would(xgem: Any) -> None:
    ran = xgem("plan", "debug-chexgen", "--gpus", 1, "--memory", 1.001)
    assert ran.code == 2
    assert "none" in ran.out
    assert ran.err.count("\n") == 1
    assert "not even a micro-batch of 1 fits 1.001 GiB" in ran.err
    needed = float(ran.err.partition("--memory ")[2].split()[0].rstrip(",."))
    assert xgem("plan", "debug-chexgen", "--gpus", 1, "--memory", needed).code == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["no-such-preset"], "unknown preset 'no-such-preset'"),
        (["debug", "--gpus", "3"], "a batch of 4 cannot be divided evenly among 3 processes: start 1, 2, 4"),
        (["debug", "--memory", "0"], "--memory 0: expected more than 0"),
        (["debug", "--memory", "-8"], "--memory -8: expected more than 0"),
        (["debug", "--precision", "int8"], "--precision int8: expected no, bf16 or fp16"),
        (["debug", "--sharding", "half"], "--sharding half: expected no, full or hybrid"),
        (["debug", "--gpus", "4", "--nodes", "3"], "--gpus 4: not divisible by --nodes 3"),
        (["debug", "--text-tokens", "0"], "--text-tokens 0: expected more than 0"),
    ],
)
def test_what_cannot_be_planned(xgem: Any, options: list[str], said: str) -> None:
    ran = xgem("plan", *options)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert said in ran.err


@pytest.mark.long
def test_the_largest_preset_is_planned_with_little_memory(project: Path) -> None:
    """In a process of its own, without a network."""
    code = (
        "import pathlib, sys; from xgem.cli import main; code = main(sys.argv[1:]); "
        "print(pathlib.Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0], file=sys.stderr); "
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", code, "plan", "paper", "--json"]
    began = time.monotonic()
    ran = subprocess.run(command, cwd=project, capture_output=True, text=True, timeout=280)
    assert ran.returncode == 0, ran.stderr
    assert time.monotonic() - began < 240  # seconds, where other tests run beside it
    assert int(ran.stderr.split()[-1]) * 1024 < 2e9  # kibibytes at most
    assert all(one["greatest_micro_batch"] for one in json.loads(ran.stdout)["stages"].values())
