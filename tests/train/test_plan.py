"""Plans of training against steps that are really trained, and against shards of made-up ranks."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from tests.train.test_golden_losses import write_image, write_masks
from xgem.configs.preset import Preset, load_preset, preset_names
from xgem.convert.random_init import random_checkpoint
from xgem.data.manifest import Manifest
from xgem.train.context import StageContext
from xgem.train.corpus import Corpus
from xgem.train.footprint import footprint
from xgem.train.joint import JointStage
from xgem.train.loop import LoopOptions, _Run
from xgem.train.plan import Hardware, Planner, StagePlan, disk
from xgem.train.planned import planned
from xgem.train.sharding import mesh_shape
from xgem.train.share import Share
from xgem.train.stages import make_stage
from xgem.types import ConfigError, InputError

TINY = ("debug", "debug-chexgen")
CASES = [
    *((name, stage, False) for name in TINY for stage in load_preset(name).train),
    *(("debug-chexgen", stage, True) for stage in ("frontal", "control")),
]
ONE = Hardware(gpus=1, memory=80, precision="no")
CLOSE = 0.1


# ---------------------------------------------------------------------------------------------- steps that are trained


def write_studies(folder: Path) -> Path:
    """Studies with all that a stage asks for, and reports that are longer than any encoder reads."""
    pixels, drawn = np.random.default_rng(0), random.Random(0)
    syllables = [first + second for first in "bcdfglmnprstv" for second in "aeiou"]
    words = ["".join(drawn.choices(syllables, k=drawn.randint(2, 4))) for _ in range(600)]
    rows: list[dict[str, Any]] = []
    for split, count in (("train", 24), ("val", 4)):
        for number in range(count):
            study = f"{split}{number:02d}"
            row: dict[str, Any] = {"study": study, "subject": study, "split": split, "source": "synthetic"}
            row |= {"impression": " ".join(drawn.choices(words, k=60)) + ".", "labels": ["Cardiomegaly"]}
            row |= {"masks": write_masks(folder, study)}
            for view in ("frontal", "lateral"):
                write_image(folder / f"{study}-{view}.png", pixels, number, view)
                rows.append(row | {"view": view, "file": f"{study}-{view}.png"})
    path = folder / "studies.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_studies(tmp_path_factory.mktemp("studies"))


def run_of(preset: Preset, stage: str, studies: Path, root: Path, **options: Any) -> _Run:
    """A run that has taken its first step, on components with random weights."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.set_num_threads(1)
    random_checkpoint(root, preset)
    manifest = Manifest.read(studies)
    train, val = (Corpus.load(manifest, split, preset, root / "cache", progress=False) for split in ("train", "val"))
    made = make_stage(stage, StageContext(preset, train, val, root, 0))
    run = _Run(made, root, LoopOptions(progress=False, tensorboard=False, **options))
    run.stage.module.train()
    run.step()
    return run


def size_of(tensors: Any) -> int:
    """Bytes of the storages of tensors, each counted once."""
    storages = {one.untyped_storage().data_ptr(): one.untyped_storage().nbytes() for one in tensors}
    return sum(storages.values())


def at(run: _Run, step: int) -> None:
    run.state.step = step
    run.step()


def most_allocated(run: _Run, step: int) -> int:
    """The most bytes that the CPU's allocator gave at once during a step, beside what was there before.

    That counts what convolutions copy for themselves, which no tensor holds: oneDNN one of large patches, PyTorch's
    own every other. The lesser of both is the nearer to what tensors take.
    """
    found = []
    for enabled in (True, False):
        with torch.backends.mkldnn.flags(enabled=enabled):
            at(run, step)
            with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
                at(run, step)
        assert profiled.profiler is not None
        results: Any = profiled.profiler.kineto_results
        events = sorted((one for one in results.events() if one.name() == "[memory]"), key=lambda one: one.start_ns())
        live = most = 0
        for event in events:
            live += event.nbytes()
            most = max(most, live)
        assert most > 0
        found.append(most)
    return min(found)


def flops_of(run: _Run, step: int) -> int:
    """FLOPs by torch's own counter, attention as the products that it is made of."""
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        at(run, step)
    return counter.get_total_flops()


def kinds_of_steps(run: _Run) -> list[int]:
    """A step of every kind: stage joint trains another group of outputs at each."""
    if not isinstance(stage := run.stage, JointStage):
        return [1]
    groups = {str(list(stage.batch(Share.whole(0, stage.name, step, 1))["z0"])): step for step in range(1, 60)}
    assert len(groups) == len(stage.groups)
    return list(groups.values())


@pytest.mark.parametrize(("name", "stage", "checkpointing"), CASES)
def test_memory_and_flops_are_those_of_a_trained_step(
    name: str, stage: str, checkpointing: bool, studies: Path, tmp_path: Path
) -> None:
    preset = load_preset(name)
    plan = planned(stage, preset)
    if checkpointing:
        assert plan.stage.checkpoint_activations()
    found = [footprint(plan.using(make), plan.frozen, processes=1, most=None, precision="no", device="cpu")
             for _, make in plan.batches]  # fmt: skip
    mean = sum(weight * one.flops for (weight, _), one in zip(plan.batches, found, strict=True))
    run = run_of(preset, stage, studies, tmp_path, checkpoint_activations=checkpointing)
    # What stays from step to step is exactly as planned
    moments = [value for state in run.parallel.optimizer.state.values() for value in state.values()]
    kept = {
        "weights": size_of(run.stage.module.parameters()),
        "averages": size_of(run.averaged.parameters()),
        "optimizer": size_of(moments),
        "gradients": sum(p.nbytes for p in run.stage.module.parameters() if p.requires_grad),
    }
    assert {part: getattr(found[0], part) for part in kept} == kept
    # The most at once, and FLOPs
    frozen = sum(x.nbytes for net in plan.frozen for x in (*net.parameters(), *net.buffers()))
    buffers = size_of([*run.stage.module.buffers(), *run.averaged.buffers()])
    steps = kinds_of_steps(run)
    most = max(most_allocated(run, step) for step in steps)
    static = kept["weights"] + kept["averages"] + kept["optimizer"] + buffers + frozen
    peak = max(one.peak for one in found)
    assert peak == pytest.approx(static + most, rel=CLOSE)
    assert peak - static == pytest.approx(most, rel=CLOSE)
    assert mean == pytest.approx(sum(flops_of(run, step) for step in steps) / len(steps), rel=CLOSE)


@pytest.mark.parametrize(("name", "stage"), [("debug", "clip"), ("debug", "frontal"), ("debug-chexgen", "control")])
@pytest.mark.parametrize("options", [{"micro_batch_size": 2}, {"precision": "bf16"}])
def test_other_ways_to_run(name: str, stage: str, options: dict[str, Any], studies: Path, tmp_path: Path) -> None:
    plan = planned(stage, load_preset(name))
    found = footprint(
        plan.using(plan.batches[0][1]), plan.frozen, processes=1, device="cpu",
        most=options.get("micro_batch_size"), precision=options.get("precision", "no"),
    )  # fmt: skip
    run = run_of(load_preset(name), stage, studies, tmp_path, **options)
    static = found.weights + found.averages + found.optimizer + found.frozen + found.buffers
    assert found.peak - static == pytest.approx(most_allocated(run, 1), rel=CLOSE)
    assert found.flops == pytest.approx(flops_of(run, 1), rel=CLOSE)


def test_frozen_networks_are_shared_with_the_averages(studies: Path, tmp_path: Path) -> None:
    run = run_of(load_preset("debug-chexgen"), "control", studies, tmp_path)
    average, module = cast(Any, run.averaged.module), cast(Any, run.stage.module)
    assert average.frozen["generator"] is module.frozen["generator"]


# ------------------------------------------------------------------------------------------------------------ sharding


@pytest.mark.long
@pytest.mark.parametrize(("name", "mesh"), [("paper", [8]), ("chexgen-xl2-512", [4, 8])])
def test_shares_are_the_shards_of_made_up_ranks(name: str, mesh: list[int], project: Path) -> None:
    """``fully_shard`` over 8 ranks of a made-up process group, or those of 4 nodes, all weights on the meta device."""
    command = [sys.executable, str(project / "tests/train/fake_ranks.py"), name, *map(str, mesh)]
    environment = {**os.environ, "PYTHONPATH": str(project)}
    ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=280)
    assert ran.returncode == 0, ran.stderr[-2000:]
    ranks = json.loads(ran.stdout.splitlines()[-1])
    preset = load_preset(name)
    assert set(ranks) == set(preset.train)
    for stage, rank in ranks.items():
        plan = planned(stage, preset)
        assert rank["blocks"] > 8
        shares = footprint(
            plan.using(plan.batches[0][1]), plan.frozen, processes=math.prod(mesh), most=1, precision="bf16", parts=8
        )
        for part, times in (("weights", 1), ("gradients", 1), ("averages", 1), ("optimizer", 2)):
            assert getattr(shares, part) == pytest.approx(times * rank["bytes"], rel=0.01), (stage, part)


def test_sharding_divides_what_is_trained_and_nothing_else() -> None:
    plan = planned("control", load_preset("debug-chexgen"))
    whole, shared = (
        footprint(plan.using(plan.batches[0][1]), plan.frozen, processes=2, most=1, precision="no", parts=parts)
        for parts in (1, 2)
    )
    for part in ("weights", "gradients", "averages", "optimizer"):
        assert getattr(shared, part) == pytest.approx(getattr(whole, part) / 2, rel=1e-3)
    assert (shared.frozen, shared.activations, shared.batch) == (whole.frozen, whole.activations, whole.batch)
    assert (whole.buckets, shared.buckets) == (whole.gradients, 0)
    assert shared.peak < whole.peak


def test_nodes_of_a_hybrid_have_all_weights_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many parts as the loop makes; in all else as on as many GPUs of one node."""
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert mesh_shape("hybrid", 32) == (4, replace(ONE, gpus=32, nodes=4, sharding="hybrid").parts)
    four = replace(ONE, gpus=4, sharding="full")
    no, full, hybrid, two = (
        plan_of("debug-chexgen", "frontal", hardware).memory
        for hardware in (
            replace(four, sharding="no"), four, replace(four, nodes=2, sharding="hybrid"), replace(four, gpus=2),
        )
    )  # fmt: skip
    for part in ("weights", "gradients", "averages", "optimizer", "gathered"):
        assert hybrid[part] == two[part] != full[part], part
    for part in ("batch", "activations", "buckets"):
        assert hybrid[part] == full[part], part
    assert full["peak"] < hybrid["peak"] < no["peak"]


# --------------------------------------------------------------------------------------------------------------- plans


def plan_of(name: str, stage: str, hardware: Hardware) -> StagePlan:
    return Planner(load_preset(name), hardware).plan(stage)


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_can_be_planned_that_trains(name: str) -> None:
    """Of those of full size the stages are planned above."""
    preset = load_preset(name)
    for stage in preset.train:
        assert planned(stage, preset).batches


def test_the_greatest_micro_batch_is_the_greatest_that_fits() -> None:
    peaks = {size: plan_of("debug", "report-vae", replace(ONE, micro_batch_size=size)).peak for size in (1, 2, 4)}
    assert peaks[1] < peaks[2] < peaks[4]
    for size, peak in peaks.items():
        for used in (1, 2, 4):
            tight = replace(ONE, memory=1 + (peak + 1) / 2**30, micro_batch_size=used)
            found = plan_of("debug", "report-vae", tight)
            assert (found.greatest_micro_batch, found.fits) == (size, used <= size)
    nothing = plan_of("debug", "report-vae", replace(ONE, memory=1 + (peaks[1] - 1) / 2**30))
    assert (nothing.greatest_micro_batch, nothing.fits, nothing.least) == (None, False, peaks[1])


def test_time_follows_from_flops_and_what_is_assumed() -> None:
    one, four = (plan_of("debug", "frontal", replace(ONE, gpus=gpus, peak=2.0, share=0.5)) for gpus in (1, 4))
    assert one.samples_per_second == pytest.approx(1e12 / one.flops, rel=1e-3)
    assert four.samples_per_second == pytest.approx(4 * one.samples_per_second)
    assert one.hours == pytest.approx(12 * 4 / one.samples_per_second / 3600)
    assert (one.samples, four.micro_batch_size) == (48, 1)


def test_checkpointed_activations_are_computed_again() -> None:
    preset = load_preset("debug-chexgen")
    first, second = (
        Planner(preset, replace(ONE, checkpoint_activations=again)).plan("frontal") for again in (False, True)
    )
    assert first.recomputed == 0 < second.recomputed
    assert second.flops - second.recomputed == pytest.approx(first.flops, rel=1e-6)
    assert second.memory["activations"] < first.memory["activations"] / 4


def test_disk_counts_the_tokens_that_exist() -> None:
    preset = load_preset("chexgen-xl2-512")
    few, many = (disk("frontal", preset, tokens) for tokens in (60, 500))
    assert few["latents of frontal"] == 10**6 * 2 * 4 * 64 * 64
    assert few["prompt report"] == 10**6 * 2 * (60 + 1) * 4096
    assert many["prompt report"] == 10**6 * 2 * (120 + 1) * 4096
    assert disk("clip", load_preset("debug"), 60) == {"images": 10**6 * 2 * 32 * 32}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"memory": 0.0}, "--memory 0: expected more than 0"),
        ({"memory": -4.0}, "expected more than 0"),
        ({"memory": float("nan")}, "expected more than 0"),
        ({"memory": 1.0}, "more than the 1 GiB that CUDA takes"),
        ({"gpus": 0}, "--gpus 0: expected more than 0"),
        ({"nodes": 0}, "--nodes 0: expected more than 0"),
        ({"gpus": 8, "nodes": 3}, "--gpus 8: not divisible by --nodes 3"),
        ({"share": 1.5}, "--share 1.5: expected at most 1"),
        ({"peak": float("inf")}, "--peak inf"),
    ],
)
def test_hardware_that_cannot_be(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        replace(ONE, **settings)


def test_gpus_that_do_not_divide_a_batch() -> None:
    with pytest.raises(ConfigError, match="a batch of 4 cannot be divided evenly among 3 processes: start 1, 2, 4"):
        plan_of("debug", "frontal", replace(ONE, gpus=3))
