"""Plans of the benchmark, and the lines that refuse one."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xgem.cli import main
from xgem.data.manifest import Manifest
from xgem.data.set_files import read_set
from xgem.experiments.chexgenbench import parts
from xgem.experiments.chexgenbench.data import write_real
from xgem.experiments.chexgenbench.plan import Data, Plan, read_bench
from xgem.types import ConfigError, DataError, InputError, NotComputed

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "part": ({"parts": ["fidelity", "beauty"]}, "parts.1: Input should be"),
    "twice": ({"parts": ["fidelity", "fidelity"]}, "duplicate 'fidelity'"),
    "space": ({"fidelity": {"spaces": ["vgg"]}}, "unknown feature space 'vgg'"),
    "settings": ({"classification": {"settings": "huge"}}, "unknown settings 'huge'"),
    "field": ({"seeds": 3}, r"seeds: unknown, did you mean seed\?"),
    "inner field": ({"data": {"manifest": "m", "tset": "val"}}, r"data\.tset: unknown, did you mean test\?"),
    "model's field": (
        {"models": [{"name": "a", "sets": {"tests": "x"}}]},
        r"models\.0\.sets\.tests: unknown, did you mean test\?",
    ),
    "source": ({"models": [{"name": "a"}]}, "expected one of model and sets"),
    "names": ({"models": [{"name": "a", "model": "x"}, {"name": "a", "model": "y"}]}, "duplicate 'a'"),
    "sets": ({"models": [{"name": "a", "sets": {}}]}, "expected at least one of test"),
    "splits": ({"data": {"manifest": "m", "train": "val", "test": "val"}}, "expected two splits"),
    "data": ({"data": {}}, "expected one of manifest and annotations"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_plan_is_one_line(write: Callable[..., Path], case: str) -> None:
    fields, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message) as refused:
        read_bench(write(**fields))
    assert "\n" not in str(refused.value)


def test_the_shipped_plans_are_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    paper = read_bench(None, size="paper")
    assert paper.privacy.prompts, paper.privacy.seeds == (2000, 10)
    assert paper.classification.n == paper.reports.n == 20_000
    assert paper.privacy.delta == 0.85
    assert read_bench(None).name == "chexgenbench-debug"
    with pytest.raises(InputError, match="unknown size 'huge': expected debug or paper"):
        read_bench(None, size="huge")


def ran(plan: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = main(["bench", "chexgenbench", str(plan), "--out", str(out), "--no-progress"])
    return code, capsys.readouterr().err


def test_an_unknown_model_ends_before_anything_is_written(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write(models=[{"name": "lost", "model": "no-such-model"}])
    code, error = ran(plan, tmp_path / "out", capsys)
    assert code == 2
    assert error.startswith("xgem: error: model 'lost': model 'no-such-model' is neither a folder nor")
    assert not (tmp_path / "out").exists()
    code, error = ran(write(models=[{"name": "near", "model": "openi-265"}]), tmp_path / "out", capsys)
    assert code == 2
    assert error.endswith("did you mean openi-256?\n")
    code, error = ran(write(models=[{"name": "a", "sets": {"test": "nowhere"}}]), tmp_path / "out", capsys)
    assert (code, error) == (2, "xgem: error: model 'a': no such test set nowhere: correct the path or leave it out\n")
    code, error = ran(write(privacy={"reid": "nowhere.pth"}), tmp_path / "out", capsys)
    assert (code, error.partition(";")[0]) == (1, "xgem: error: nowhere.pth: no such file")
    code, error = ran(write(models=[{"name": "real", "model": "openi-256"}]), tmp_path / "out", capsys)
    assert code == 2
    assert "stands for the real images" in error


def test_a_split_that_the_manifest_lacks(
    write: Callable[..., Path], studies: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = write(data={"manifest": str(studies), "train": "train", "test": "val"})
    code, error = ran(plan, tmp_path / "out", capsys)
    assert code == 2
    assert "0 studies of split 'val' have a frontal and a text of their own: expected at least 6" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out" / "bench.json").exists()


def test_a_folder_of_something_else_or_of_other_data(
    write: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("mine")
    assert "the folder is not empty" in ran(write(), tmp_path / "full", capsys)[1]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "bench.json").write_text('{"format": "xgem-chexgenbench", "data": {}}')
    assert "was begun with other data" in ran(write(), tmp_path / "other", capsys)[1]


def test_too_few_positives_are_not_computed(studies: Path) -> None:
    few = read_set(studies, split="test").subset(range(4))
    with pytest.raises(NotComputed, match=r"too few positives .* needs 5 of 4 images .*Cardiomegaly 2"):
        parts._check_positives(few)
    assert isinstance(few.name, str)


def test_the_benchmarks_annotations_become_a_manifest(tmp_path: Path) -> None:
    from tests.experiments.chexgenbench.conftest import drawn

    for split, patients in (("TRAIN", range(7)), ("TEST", range(7, 14))):
        with (tmp_path / f"{split}.csv").open("w", newline="") as stream:
            table = csv.writer(stream)
            table.writerow(["id", "path", "impression", "annotated_prompt", "chexpert_labels"])
            for number in patients:
                folder = tmp_path / "files" / "p10" / f"p100000{number:02d}"
                folder.mkdir(parents=True, exist_ok=True)
                file = folder / drawn(folder, f"i{number}", number)
                labels = "{'Edema': 1.0, 'Fracture': -1.0, 'Pneumonia': nan}"
                path = file.relative_to(tmp_path / "files")
                table.writerow([f"i{number}", path, "Old.", f"Mild edema, {number}.", labels])
    data = Data.model_validate(
        {"annotations": {"train": tmp_path / "TRAIN.csv", "test": tmp_path / "TEST.csv", "images": tmp_path / "files"}}
    )
    manifest = write_real(data, tmp_path / "real.parquet")
    assert [row.split for row in manifest.rows].count("train") == 7
    first = manifest.rows[0]
    assert (first.impression, first.labels) == ("Mild edema, 0.", ("Edema",))  # 1 alone: not uncertain, not unmentioned
    assert first.subject == "p10000000"
    assert Manifest.read(tmp_path / "real.parquet").rows == manifest.rows
    with pytest.raises(DataError, match="expected at least 6"):
        write_real(data.model_copy(update={"test_n": 3}), tmp_path / "fewer.parquet")


def test_paths_take_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XGEM_DATA", "/somewhere")
    file = tmp_path / "plan.yaml"
    file.write_text("data: {manifest: $XGEM_DATA/m.parquet}\nmodels: [{name: a, model: openi-256}]\n")
    plan: Plan = read_bench(file)
    assert plan.data.manifest == Path("/somewhere/m.parquet")
