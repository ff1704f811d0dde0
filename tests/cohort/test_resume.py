"""Killed, sharded, grown, damaged: the finished cohort is the one that a single unbroken run makes, byte for byte."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from xgem.cli import main
from xgem.cohort.folder import FINAL, Folder
from xgem.cohort.items import expand
from xgem.cohort.plan import read_plan
from xgem.cohort.run import run
from xgem.modalities.cxr import Radiograph
from xgem.modalities.report import Report

KILLS = 20
LIMIT = 120.0
MIXED = {"findings": ["Edema", "Fracture"], "views": ["frontal", ["frontal", "lateral"]], "count": 3}


@pytest.fixture
def plan(write_plan: Any) -> Path:
    """Twelve studies of one or two views, in four batches."""
    return write_plan(outputs=["frontal", "lateral"], balanced=MIXED)


@pytest.fixture
def whole(plan: Path, tmp_path: Path) -> dict[str, bytes]:
    """What one unbroken run makes."""
    done = run(read_plan(plan), tmp_path / "whole", device="cpu", progress=False)
    assert (done.made, done.missing) == (12, 0)
    return tree(tmp_path / "whole")


@pytest.fixture(scope="module")
def start() -> Iterator[Callable[..., BaseProcess]]:
    """Starts a function in a process that a server forks: torch is imported once for all of them."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["xgem.cli", "xgem.cli.cohort", "xgem.cohort.run", "diffusers"])
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


def tree(root: Path) -> dict[str, bytes]:
    """Every file below ``root``, hidden ones too."""
    found = {file.relative_to(root).as_posix(): file.read_bytes() for file in root.rglob("*") if file.is_file()}
    assert {*FINAL, ".cohort/begun.json"} <= set(found)
    return found


def command(plan: Path, out: Path, *more: object) -> list[str]:
    options = ["--out", out, "--device", "cpu", "--threads", 1, "--no-progress", *more]
    return ["cohort", str(plan), *map(str, options)]


# ------------------------------------------------------------------------------------------------------- killed


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_killed_at_random_moments_it_ends_as_the_unbroken_run(
    write_plan: Any, tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    plan = write_plan(outputs=["frontal", "lateral"], balanced={**MIXED, "count": 40})
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    whole = start(main, command(plan, unbroken))

    def batches() -> int:
        return len(list((broken / ".cohort" / "batches").glob("*.json")))

    rng = random.Random(20)
    seen: list[int] = []
    for number in range(KILLS):
        target, end = batches() + rng.choice((1, 1, 1, 2)), time.monotonic() + LIMIT
        process = start(main, command(plan, broken))
        # Every fourth at some moment of its start, the others some way into the batch after one or two that they made.
        while number % 4 and batches() < target:
            assert process.exitcode is None
            assert time.monotonic() < end
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.08 if number % 4 else 0.5))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        seen.append(batches())
    assert seen[-1] >= 15
    assert not (broken / "cohort.json").exists()
    last = start(main, command(plan, broken))
    for process in (last, whole):
        process.join(LIMIT)
        assert process.exitcode == 0
    assert tree(broken) == tree(unbroken)


@pytest.mark.parametrize("moment", range(9))
def test_stopped_between_any_two_renames(
    plan: Path, whole: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: int
) -> None:
    """Stops like a kill (nothing of the clean-up runs) at the n-th change of the folder, then goes on."""
    out = tmp_path / "out"
    pid = os.fork()
    if pid == 0:
        try:
            count, replace = iter(range(10**6)), Path.replace

            def stop(self: Path, target: Any) -> Path:
                if next(count) == moment * 3:
                    os.kill(os.getpid(), signal.SIGKILL)
                return replace(self, target)

            monkeypatch.setattr(Path, "replace", stop)
            run(read_plan(plan), out, device="cpu", progress=False)
        finally:
            os._exit(3)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert not (out / "cohort.json").exists()
    run(read_plan(plan), out, device="cpu", progress=False)
    assert tree(out) == whole


# ------------------------------------------------------------------------------------------------------ sharded


def test_two_shards_and_collect_equal_one_process(
    xgem: Any, plan: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    ran = xgem(*command(plan, out, "--shard", "2/2"))
    assert (ran.code, ran.out) == (0, f"{out}: 4 studies made, 8 are left to other shards\n")
    assert not (out / "cohort.json").exists()
    ran = xgem("cohort", plan, "--out", out, "--collect")
    assert (ran.code, "8 of 12 studies are missing" in ran.err) == (1, True)
    ran = xgem(*command(plan, out, "--shard", "1/2"))
    assert ran.out == f"{out}: 12 studies, 12 frontal, 6 lateral, 0 reports\n"
    assert tree(out) == whole
    for name in FINAL:
        (out / name).unlink()
    assert xgem("cohort", plan, "--out", out, "--collect").code == 0
    assert tree(out) == whole


def test_final_files_are_written_once(xgem: Any, plan: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "whole"
    before = {name: (out / name).stat().st_mtime_ns for name in FINAL}
    assert xgem(*command(plan, out)).code == 0
    assert xgem(*command(plan, out, "--shard", "1/7")).code == 0
    assert xgem("cohort", plan, "--out", out, "--collect").code == 0
    assert {name: (out / name).stat().st_mtime_ns for name in FINAL} == before
    assert tree(out) == whole


def test_processes_that_do_the_same_leave_no_trace(
    plan: Path, whole: dict[str, bytes], tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    """Three at once, all with everything to do: each batch is made by one of them."""
    processes = [start(main, command(plan, tmp_path / "out")) for _ in range(3)]
    for process in processes:
        process.join(LIMIT)
        assert process.exitcode == 0
    assert tree(tmp_path / "out") == whole


def test_a_batch_that_another_process_makes_is_left_to_it(
    plan: Path, tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    out = tmp_path / "out"
    cohort = expand(read_plan(plan))
    (out / ".cohort" / "batches").mkdir(parents=True)
    with Folder(out).taking(cohort.batches[1]) as ours:
        assert ours
        process = start(main, command(plan, out))
        process.join(LIMIT)
        assert process.exitcode == 0
    done = {file.stem for file in (out / ".cohort" / "batches").iterdir()}
    assert done == {batch.name for batch in cohort.batches} - {cohort.batches[1].name}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_torchrun_equals_one_process(plan: Path, whole: dict[str, bytes], tmp_path: Path, project: Path) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]  # finds a free port itself
    done = subprocess.run(
        [sys.executable, *launcher, "-m", "xgem", *command(plan, tmp_path / "out")],
        cwd=project,
        env={**os.environ, "PYTHONPATH": str(project), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,  # of a machine that has much else to do
    )
    assert done.returncode == 0, done.stderr
    assert tree(tmp_path / "out") == whole


@pytest.mark.slow
def test_a_job_of_two_tasks_equals_one_process(
    plan: Path, whole: dict[str, bytes], tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("submitit")
    from xgem.cohort.submit import Work
    from xgem.utils.slurm import Resources, submit

    monkeypatch.setenv("PYTHONPATH", str(project))
    work = Work(str(plan), str(tmp_path / "out"), "cpu", None, False, 1)
    job = submit(work, "test", tmp_path / "logs", Resources(tasks=2, timeout_min=4), cluster="local")
    assert job.results() == [8, 4]
    assert tree(tmp_path / "out") == whole


def test_slurm_needs_submitit_and_a_cluster(
    xgem: Any, plan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no srun in it
    ran = xgem("cohort", plan, "--out", tmp_path / "out", "--slurm", "--partition", "gpu", "--nodes", 2)
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    monkeypatch.setitem(sys.modules, "submitit", None)
    ran = xgem("cohort", plan, "--out", tmp_path / "out", "--slurm")
    assert (ran.code, "pip install submitit" in ran.err) == (2, True)
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------- grown, changed, damaged


def test_a_count_may_grow_and_nothing_else_change(
    xgem: Any, write_plan: Any, plan: Path, whole: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "whole"
    grown = write_plan("grown", outputs=["frontal", "lateral"], balanced={**MIXED, "count": 5})
    assert xgem(*command(grown, tmp_path / "fresh")).code == 0
    ran = xgem(*command(grown, out))
    assert ran.code == 0, ran.err
    assert tree(out) == tree(tmp_path / "fresh")
    kept = [name for name in whole if name.startswith("images/") and tree(out)[name] == whole[name]]
    assert len(kept) >= 12  # full batches stay as they are

    fewer = xgem(*command(plan, out))
    assert (fewer.code, "a count may only grow" in fewer.err) == (1, True)
    for fields in ({"seed": 6}, {"num_inference_steps": 3}, {"batch_size": 5}, {"licence": "Free."}):
        other = write_plan("other", outputs=["frontal", "lateral"], balanced={**MIXED, "count": 5}, **fields)
        ran = xgem(*command(other, out))
        assert (ran.code, "was begun with another plan" in ran.err, ran.err.count("\n")) == (1, True, 1), fields
    ran = xgem(*command(grown, out, "--dtype", "bfloat16"))
    assert (ran.code, "was begun with dtype float32, this is bfloat16" in ran.err) == (1, True)
    ran = xgem("cohort", other, "--out", out, "--collect")
    assert (ran.code, "with another plan" in ran.err) == (1, True)
    assert tree(out) == tree(tmp_path / "fresh")


def test_another_manifest_or_checkpoint_is_another_cohort(
    xgem: Any, write_plan: Any, manifest: Path, control: Path, tmp_path: Path
) -> None:
    copy = manifest.with_name("copy.parquet")
    copy.write_bytes(manifest.read_bytes())
    part = {"split": "test", "inputs": ["report"]}
    out = tmp_path / "out"
    first = write_plan(outputs=["frontal"], matched={**part, "manifest": str(manifest)})
    assert xgem(*command(first, out)).code == 0
    moved = write_plan(outputs=["frontal"], matched={**part, "manifest": str(copy)})
    assert xgem(*command(moved, out)).code == 0  # the same file elsewhere
    from xgem.data.manifest import Manifest

    real = Manifest.read(manifest)
    Manifest(real.rows[1:], real.root).write(copy)
    ran = xgem(*command(moved, out))
    assert (ran.code, "with another plan" in ran.err) == (1, True)
    other = write_plan(outputs=["frontal"], matched={**part, "manifest": str(manifest)}, model=str(control))
    ran = xgem(*command(other, out))
    assert (ran.code, "was begun with checkpoint" in ran.err) == (1, True)


@pytest.mark.parametrize("damage", ["cut", "gone", "record", "stray", "part", "table"])
def test_what_is_damaged_is_made_again(
    xgem: Any, plan: Path, whole: dict[str, bytes], tmp_path: Path, damage: str
) -> None:
    out = tmp_path / "whole"
    image = out / "images" / "00000005-lateral.png"
    if damage == "cut":
        image.write_bytes(image.read_bytes()[:-7])
    elif damage == "gone":
        image.unlink()
    elif damage == "record":
        next((out / ".cohort" / "batches").glob("*.json")).write_text('{"items"', encoding="utf-8")
    elif damage == "stray":
        (out / "cohort.json").unlink()
        (out / "images" / "00000002-lateral.png").write_bytes(b"of no study's")
    elif damage == "part":
        (out / "cohort.json").unlink()
        (out / ".cohort" / "parts" / "00-0000000" / "images").mkdir(parents=True)
        (out / ".cohort" / "parts" / "00-0000000" / "images" / "00000000-frontal.png").write_bytes(b"half")
        (out / ".manifest.parquet.1.part").write_bytes(b"half")
    else:
        (out / "metadata.csv").write_text("file\n", encoding="utf-8")
    assert xgem(*command(plan, out)).code == 0
    assert tree(out) == whole


def test_a_users_own_files_are_left_alone(xgem: Any, plan: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    out = tmp_path / "whole"
    (out / "cohort.json").unlink()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    (out / "images" / "sheet.png").write_bytes(b"mine")
    assert xgem(*command(plan, out)).code == 0
    assert tree(out) == {**whole, "notes.txt": b"mine", "images/sheet.png": b"mine"}


def test_a_used_folder_or_a_file_is_refused(xgem: Any, plan: Path, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "thesis.txt").write_text("mine", encoding="utf-8")
    for out in (tmp_path / "used", tmp_path / "used" / "thesis.txt", tmp_path / "used" / "thesis.txt" / "below"):
        ran = xgem(*command(plan, out))
        assert (ran.code, ran.err.count("\n")) == (1, 1), out
    assert [path.name for path in (tmp_path / "used").iterdir()] == ["thesis.txt"]
    ran = xgem("cohort", plan, "--out", tmp_path / "none", "--collect")
    assert (ran.code, "no cohort was begun here" in ran.err) == (1, True)


@pytest.mark.parametrize("kind", [Radiograph, Report])
def test_a_full_disk_is_one_line_and_no_loss(
    xgem: Any, write_plan: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type
) -> None:
    plan = write_plan(outputs=["frontal", "report"], balanced={"count": 10})
    out, write = tmp_path / "out", kind.write
    left = iter(range(6))

    def full(*arguments: Any, **options: Any) -> Path:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(kind, "write", full)
        ran = xgem(*command(plan, out))
    assert (ran.code, ran.err) == (1, f"xgem: error: {out}: cannot be written (No space left on device)\n")
    assert len(list((out / ".cohort" / "batches").iterdir())) == 1
    assert list((out / ".cohort" / "parts").iterdir()) == []
    ran = xgem(*command(plan, out))
    assert ran.code == 0, ran.err
    assert xgem(*command(plan, tmp_path / "fresh")).code == 0
    assert tree(out) == tree(tmp_path / "fresh")


def test_items_are_replayed_from_their_files(xgem: Any, write_plan: Any, tmp_path: Path) -> None:
    plan = write_plan(outputs=["frontal", "lateral", "report"], balanced={"findings": ["Edema"], "count": 3})
    out, model = tmp_path / "out", read_plan(plan).model
    assert xgem(*command(plan, out)).code == 0
    images = {view: out / "images" / f"00000001-{view}.png" for view in ("frontal", "lateral")}
    shown = [argument for view, file in images.items() for argument in (f"--{view}", file)]
    for number, (file, given) in enumerate([(images["lateral"], []), (out / "reports" / "00000001.txt", shown)]):
        ran = xgem("replay", file, *given, "--out", tmp_path / str(number), "--model", model, "--no-progress")
        assert ran.code == 0, ran.err
        assert f"identical to {file}" in ran.err
