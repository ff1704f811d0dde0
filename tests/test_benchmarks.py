"""The benchmarks run, at a tiny size, and what they compare is equal."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

TINY = ["--preset", "debug-chexgen", "--no-compile"]


def benchmark(project: Path, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", project / "benchmarks" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def dit(project: Path) -> Any:
    return benchmark(project, "dit")


@pytest.fixture
def evaluation(project: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """All in this process, where otherwise each measurement has its own."""
    pytest.importorskip("torchmetrics")
    pytest.importorskip("prdc")
    module = benchmark(project, "eval")
    monkeypatch.setattr(module, "apart", module.measure)
    return module


SMALL = ["--n", "400", "--dim", "8", "--prdc-n", "200", "--runs", "2"]


def test_fidelity_compares_what_is_equal(evaluation: Any, capsys: pytest.CaptureFixture[str]) -> None:
    evaluation.main(SMALL)
    result = json.loads(capsys.readouterr().out)
    for name in ("fid", "kid", "prdc"):
        assert result[name]["speedup_min"] <= result[name]["speedup_median"] <= result[name]["speedup_max"]
        assert result[name]["ours_peak_gb"] > 0
    assert result["prdc"]["ours"] == pytest.approx(result["prdc"]["theirs"])
    assert result["fid with its interval"]["ours"]["value"] == pytest.approx(result["fid"]["ours"]["fid"])
    assert (result["prdc"]["n"], result["prdc at --n"]["n"]) == (200, 400)


@pytest.mark.parametrize("name", ["ours_fid", "ours_kid", "ours_prdc"])
def test_fidelity_finds_what_is_not_equal(evaluation: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    task = f"ours {name.removeprefix('ours_')}"
    original = evaluation.TASKS[task]
    monkeypatch.setitem(evaluation.TASKS, task, lambda real, generated: original(real * 2, generated))
    with pytest.raises(AssertionError, match="not close"):
        evaluation.main([*SMALL, "--no-large"])


@pytest.mark.parametrize("sampler", ["ddim", "dpmsolver++"])
def test_it_compares_what_is_equal(
    dit: Any, sampler: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    dit.main([*TINY, "--batch", "2", "--steps", "3", "--runs", "2", "--threads", "1", "--sampler", sampler])
    result = json.loads(capsys.readouterr().out)["both as they are"]
    assert result["largest_relative_difference"] < 1e-4
    assert result["speedup_min"] <= result["speedup_median"] <= result["speedup_max"]
    assert result["speedup_median"] > 0


def test_it_finds_what_is_not_equal(dit: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    original = dit.pipeline_of

    def other(model: Any, sampler: str) -> Any:
        pipeline = original(model, sampler)
        with torch.no_grad():
            pipeline.transformer.proj_out.bias += 0.1
        return pipeline

    monkeypatch.setattr(dit, "pipeline_of", other)
    with pytest.raises(AssertionError, match="not close"):
        dit.main([*TINY, "--batch", "2", "--steps", "2", "--runs", "1", "--threads", "1"])


def test_mutation_has_a_module_and_tests_for_every_target(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutation = benchmark(project, "mutation")
    for module, tests in mutation.TARGETS.values():
        assert list((project / "xgem").glob(f"{module}.py"))
        assert all((project / "tests" / f"{test}.py").is_file() for test in tests)
    pytest.importorskip("mutmut")
    monkeypatch.chdir(tmp_path)
    Path("pyproject.toml").write_text(mutation.SETTINGS.format(module="encoders/contrastive", tests=""))
    Path("xgem/encoders").mkdir(parents=True)
    shutil.copy(project / "xgem/encoders/contrastive.py", "xgem/encoders")
    names = mutation.mutants_of([Path("xgem/encoders/contrastive.py")])
    assert len(names) == len(set(names)) > 20
    assert {name.rpartition("__mutmut_")[0].split(".")[-1] for name in names} >= {"x_info_nce"}
    outcomes = {"a": "killed", "b": "survived", "c": "timeout", "d": "no tests"}
    assert mutation.Score(9, outcomes).killed == 2


def test_what_it_measures_on_a_device(dit: Any) -> None:
    options = Namespace(
        device_preset="chexgen-small-128", device_steps=2, batches=[1, 2],
        train_preset="chexgen-small-128", train_steps=1, train_batches=[2], peak_tflops=0.1,
    )  # fmt: skip
    found = dit.on_device(options, torch.device("cpu"), compiled=False)
    assert [row["batch"] for row in found["sampling_rate of chexgen-small-128"]] == [1, 2]
    for rows in (found["sampling_rate of chexgen-small-128"], found["training_rate of chexgen-small-128"]):
        assert all(0 < row["share_of_peak"] < 20 for row in rows)


def test_formats_of_shards_are_compared(project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that are installed; each compares what it reads with what was written."""
    streams = benchmark(project, "streams")
    streams.main(
        [str(tmp_path / "files"), "--studies", "300", "--few", "200", "--reads", "250", "--formats", "safetensors"]
    )
    few, many = map(json.loads, capsys.readouterr().out.splitlines())
    assert (few["studies"], many["studies"]) == (200, 300)
    assert many["samples_per_s"] > 0
    assert not list((tmp_path / "files").iterdir())


@pytest.mark.long
@pytest.mark.timeout(900)
def test_memory_of_a_training_from_shards_does_not_grow(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    encoded = benchmark(project, "encoded")
    encoded.main([str(tmp_path), "--studies", "500", "20000", "--steps", "60", "--no-check"])
    few, many = map(json.loads, capsys.readouterr().out.splitlines())
    assert many["shards_mb"] > 30 * few["shards_mb"]
    assert many["VmHWM"] < 2000
    assert many["VmHWM"] < few["VmHWM"] + 15  # of 36 MB on the disk
    assert not list(tmp_path.iterdir())


def test_the_published_size_is_the_papers(project: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """XGeM 3.3: 737M for CLIP, 101M for AutoKL, 241M for Optimus, 1.77B and 2.04B for the UNets, 6.77B in all."""
    module = benchmark(project, "published_size")
    sizes = {size.name: size for size in module.published_sizes()}
    whole = {name: int(size.all / 1e6) for name, size in sizes.items()}
    assert whole == {"CLIP": 737, "AutoKL": 101, "Optimus": 241, "X-ray UNet": 1772, "Report UNet": 2048}
    assert int(sum(size.all * size.times for size in sizes.values()) / 1e7) == 677
    monkeypatch.setattr(sys, "argv", ["published_size.py"])
    module.main()
    assert "As the paper counts: 6,777,103,788." in capsys.readouterr().out


@pytest.fixture
def training(project: Path) -> Any:
    return benchmark(project, "train")


def test_training_is_compared_within_one_run(
    training: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "PROCESSES", (1, 2))
    words = ["--preset", "debug", "--batch", "4", "--studies", "8", "--steps", "1", "--runs", "1", "--no-device"]
    training.main(words)
    result = json.loads(capsys.readouterr().out)
    for name in ("encoding at every step, over encoded data", "the loop, over a plain one"):
        assert 0 < result[name]["ratio_min"] <= result[name]["ratio_median"] <= result[name]["ratio_max"]
    assert result["batches, times as fast as steps"]["ratio_median"] > 1
    assert set(result["processes"]["throughput_ratio"]) == {"1", "2"}
    assert result["on a GPU"] == "left out: --no-device"


def test_the_plain_loop_trains_as_the_loop_does(training: Any, tmp_path: Path) -> None:
    """What is compared is equal: the same weights and averages after the same steps."""
    options = training.parser_of().parse_args(["--preset", "debug", "--batch", "4", "--studies", "8"])
    preset = training.preset_of(options)
    training.write_studies(tmp_path, preset, 8, 0)
    training.random_checkpoint(tmp_path, preset)
    with training.together("cpu"):
        run = training.run_of(training.stage_of(options, tmp_path), tmp_path)
        plain = training.PlainLoop(training.stage_of(options, tmp_path))
        plain.module.train()
        for _ in range(3):
            plain()
        for _ in range(2):  # the first is behind it
            run.step()
    for ours, theirs in zip(run.stage.module.parameters(), plain.module.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)
    for ours, theirs in zip(run.averaged.module.parameters(), plain.averages, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_training_measures_on_a_device(training: Any) -> None:
    options = training.parser_of().parse_args(["--device-steps", "1", "--peak-tflops", "0.1"])
    rows = [("debug-chexgen", "frontal", 2, "training"), ("debug-chexgen", "frontal", 2, "sampling"),
            ("debug", "joint", 2, "training")]  # fmt: skip
    table = training.on_device(options, torch.device("cpu"), rows, compiled=False)
    assert [row["what"] for row in table] == ["training", "sampling", "training"]
    assert all(0 < row["share_of_peak"] < 20 for row in table)
    assert all(row["planned_gib"] >= 0 for row in (table[0], table[2]))
    options.minutes = 0
    assert all("left_out" in row for row in training.on_device(options, torch.device("cpu"), rows, compiled=False))
