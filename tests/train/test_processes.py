"""Training in processes of its own: killed by SIGKILL and resumed; several that train together."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import random
import re
import runpy
import shutil
import signal
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from safetensors import safe_open

from tests.train.test_golden_losses import CASES, differences, logged, read_golden, write_data
from xgem.checkpoints import sharded
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


# ------------------------------------------------------------------------------------------- several processes


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def together(start: Callable[..., BaseProcess], world: int, function: str, *arguments: object, nodes: int = 1) -> None:
    """Call a function of several_processes.py in every one of ``world`` processes, evenly on ``nodes``."""
    script, port = str(Path(__file__).with_name("several_processes.py")), free_port()
    tasks = [{"TASK": (function, ((rank, world, nodes, port), *arguments))} for rank in range(world)]
    workers = [start(runpy.run_path, script, task, "__worker__") for task in tasks]
    for worker in workers:
        worker.join(LIMIT)
        assert worker.exitcode == 0


KEYS = [key for key in CASES if key != "reid"]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory, start: Callable[..., BaseProcess]) -> tuple[Path, Path]:
    """Every stage trained by two processes: the manifest, and the folder."""
    folder = tmp_path_factory.mktemp("two")
    manifest = write_data(folder)
    together(start, 2, "train", manifest, folder / "two", {})
    return manifest, folder / "two"


@pytest.mark.timeout(600)
def test_losses_of_two_processes_are_those_of_one(two: tuple[Path, Path]) -> None:
    assert not wrong(dict.fromkeys(KEYS, two[1]))


ON_NODES = ("image-vae", "frontal", "joint")
"""The stages that several nodes train."""
LIKE_OTHERS = {"no": (), "full": ("report-vae", "report")}
"""What is sharded as other stages are, and not trained again."""
COMPILED = {"no": ("frontal-dit",), "full": ("lateral",)}
"""A transformer that is compiled whole, and a UNet that is so in parts, by sharding."""


@pytest.mark.timeout(900)
@pytest.mark.parametrize("sharding", ["no", "full"])
def test_losses_do_not_depend_on_processes(
    sharding: str, two: tuple[Path, Path], tmp_path: Path, start: Callable[..., BaseProcess]
) -> None:
    """Half of every stage on two processes, the rest on four, which take one sample at once: the golden losses.

    Of sharded ones some begin with four on two nodes, which have all weights each, and go on with two on one.
    Some begin compiled, and go on without.
    """
    manifest, trained = two
    apart, nodes, alone = (tmp_path / name for name in ("apart", "nodes", "alone"))
    hybrid = ON_NODES if sharding == "full" else ()
    # Each stage has a folder of its own: components of other weights, if by rounding alone, make those that build on
    # them another run. What image-decoder starts from is gone, as it has changed its own codec: it comes after that.
    folders = {key: (nodes if key in hybrid else apart) / key for key in KEYS
               if key not in ("image-decoder", *LIKE_OTHERS[sharding])}  # fmt: skip
    for key, folder in folders.items():
        preset = CASES[key].preset
        shutil.copytree(trained / preset, folder / preset, ignore=shutil.ignore_patterns("training"))
    options, single = {"sharding": sharding}, {"micro_batch_size": 1}
    together(start, 2, "train_each", manifest, apart, 10, options, COMPILED[sharding])
    if hybrid:
        together(start, 4, "train_each", manifest, nodes, 10, {"sharding": "hybrid"} | single, nodes=2)
    written = {folder: list(folder.glob("*/training/*/checkpoints/*")) for folder in folders.values()}
    assert all([path.name for path in paths] == ["step-00000010"] for paths in written.values())
    for key in hybrid:
        assert_written_once(*written[folders[key]])
    shutil.copytree(folders["joint"], alone / "joint")
    together(start, 4, "train_each", manifest, apart, None, options | single)
    if hybrid:
        together(start, 2, "train_each", manifest, nodes, None, options)
    assert not wrong(folders | {"image-decoder": folders["image-vae"]})
    # What several processes have written, a single one reads
    together(start, 1, "train_each", manifest, alone, None, {})
    assert not wrong({"joint": alone / "joint"})


@pytest.mark.timeout(300)
def test_checkpoints_in_parts_on_a_full_disk_and_harmed(tmp_path: Path, start: Callable[..., BaseProcess]) -> None:
    """What one process cannot write ends all, with one line; a shard that is truncated or gone takes one checkpoint."""
    whole, full = tmp_path / "whole", tmp_path / "full"
    for root in (whole, full):
        root.mkdir()
    together(start, 2, "train_lines", [whole, full], 9)
    main, other = (tmp_path.joinpath(f"full-{rank}.txt").read_text() for rank in (0, 1))
    assert re.fullmatch(r"OutputError: .*: cannot be written \(.*File too large.*\): make room.*", main)
    assert other == "SystemExit: 1"
    folder = full / "training/line/checkpoints"
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000003", "step-00000006"]

    roots = {harm: tmp_path / harm for harm in ("truncated", "missing")}
    for root in roots.values():
        shutil.copytree(full, root)
    shards = {harm: max(root.glob("training/line/checkpoints/step-00000006/shard-00002-*"))
              for harm, root in roots.items()}  # fmt: skip
    shards["truncated"].write_bytes(shards["truncated"].read_bytes()[:-5])
    shards["missing"].unlink()
    together(start, 2, "train_lines", [full, *roots.values()])
    for root in (full, *roots.values()):
        assert (root / "final.safetensors").read_bytes() == (whole / "final.safetensors").read_bytes()
    for harm, root in roots.items():
        said = tmp_path.joinpath(f"{harm}-0.txt").read_text()
        assert said.startswith(f"checkpoint {shards[harm].parent} cannot be used (")
        assert shards[harm].name in said
        assert said.endswith(", going on from the one before\n")
        assert said.count("\n") == 1
        assert (root / "training/line/checkpoints/damaged-step-00000006").is_dir()


def assert_written_once(checkpoint: Path) -> None:
    """Weights that every node has are in the files of one of them, in parts."""
    files = sorted(checkpoint.glob("shard-*.safetensors"))
    assert len(files) > 1
    written: Counter[str] = Counter()
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                written[name] += math.prod(tensors.get_slice(name).get_shape())
    assert written == {name: math.prod(size) for name, size in sharded.sizes(checkpoint).items()}


def wrong(folders: dict[str, Path]) -> dict[str, list[str]]:
    """How the losses of stages, each below a folder, differ from the golden ones."""
    found = {key: differences(key, logged(key, folder), read_golden(key)) for key, folder in folders.items()}
    return {key: lines for key, lines in found.items() if lines}
