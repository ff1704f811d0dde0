"""Manifests split, sampled, filtered and counted, from Python and from the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from xgem.cli.data import app
from xgem.data import select
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.types import InputError, OutputError


def row(number: int, view: str = "frontal", **fields: Any) -> Row:
    common: dict[str, Any] = {"study": f"s{number}", "subject": f"p{number // 2}", "split": "train", "source": "nih"}
    return Row.model_validate(common | {"view": view, "file": f"{number}-{view}.png"} | fields)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    rows = [
        row(0, labels=("Mass",), sex="F", age=20, impression="A mass."),
        row(0, "lateral", labels=("Mass",), sex="F", age=20, impression="A mass."),
        row(1, labels=("No Finding",), sex="F", age=20),
        row(2, labels=("Edema",), sex="M", age=70, severity=3.0),
        row(3, sex=None, age=None, source="elsewhere", labels=("Pneumonia",)),
    ]
    rows += [row(number) for number in range(4, 60)]
    made = Manifest(tuple(rows), tmp_path)
    made.write(tmp_path / "m.jsonl")
    return made


def splits(manifest: Manifest) -> dict[str, str]:
    return {one.subject: one.split for one in manifest.rows}


def test_split_by_shares_keeps_a_patient_together(manifest: Manifest) -> None:
    made = select.split(manifest, val=0.3, test=0.2)
    made.check(files=False)
    assert set(splits(made).values()) == {"train", "val", "test"}
    assert splits(select.split(manifest, val=0.3, test=0.2)) == splits(made)
    assert splits(select.split(manifest, val=0.3, test=0.2, salt="other")) != splits(made)
    assert set(splits(select.split(manifest, val=0, test=0)).values()) == {"train"}
    with pytest.raises(InputError, match="less than 1 together"):
        select.split(manifest, val=0.6, test=0.4)


def test_split_by_lists(manifest: Manifest) -> None:
    made = select.split_by_lists(manifest, {"test": ["p0", "s2"], "val": ["p5"]}, rest="train")
    found = splits(made)
    assert [found[name] for name in ("p0", "p1", "p5", "p6")] == ["test", "test", "val", "train"]
    with pytest.raises(InputError, match="'x' is no subject and no study"):
        select.split_by_lists(manifest, {"test": ["x"]}, rest="train")
    with pytest.raises(InputError, match="in lists test and val"):
        select.split_by_lists(manifest, {"test": ["s0"], "val": ["s1"]}, rest="train")
    with pytest.raises(InputError, match="29 subjects are in no list"):
        select.split_by_lists(manifest, {"test": ["p0"]})


def test_sample(manifest: Manifest) -> None:
    drawn = select.sample(manifest, 40, seed=1)
    assert len(drawn.studies()) == 40
    assert select.sample(manifest, 40, seed=1) == drawn != select.sample(manifest, 40, seed=2)
    assert {len([one for one in drawn.rows if one.study == "s0"])} <= {0, 2}
    with pytest.raises(InputError, match="expected 1 to 60"):
        select.sample(manifest, 61)


@pytest.mark.parametrize(
    ("criteria", "studies"),
    [
        ({"views": ("lateral",)}, {"s0"}),
        ({"labels": ("Lung Lesion",)}, {"s0"}),
        ({"without": ("edema",), "views": ("frontal",)}, {"s0", "s1"}),  # unknown is not absent
        ({"labels": ("Pneumonia",)}, {"s3"}),
        ({"sexes": ("F",), "ages": (0, 30)}, {"s0", "s1"}),
        ({"ages": (30, 120)}, {"s2"}),
        ({"report": True}, {"s0"}),
        ({"annotated": True}, {"s2"}),
        ({"sources": ("elsewhere",)}, {"s3"}),
    ],
)
def test_filter(manifest: Manifest, criteria: dict[str, Any], studies: set[str]) -> None:
    assert {one.study for one in select.filtered(manifest, select.Criteria(**criteria)).rows} == studies


@pytest.mark.parametrize(
    "criteria",
    [{"views": ("oblique",)}, {"labels": ("Mass",)}, {"sexes": ("X",)}, {"splits": ("all",)}, {"ages": (9, 3)}],
)
def test_criteria_that_cannot_be(criteria: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"expected (one of|a range)"):
        select.Criteria(**criteria)


def test_nothing_left(manifest: Manifest) -> None:
    with pytest.raises(InputError, match="none of the 61 rows"):
        select.filtered(manifest, select.Criteria(splits=("test",)))


def test_command_line(manifest: Manifest, tmp_path: Path) -> None:
    runner, source, out = CliRunner(), str(tmp_path / "m.jsonl"), str(tmp_path / "out.jsonl")
    (tmp_path / "test.txt").write_text("# patients\np0\n\ns2\n")
    listed = ["split", source, "--out", out, "--list", f"test={tmp_path / 'test.txt'}", "--rest", "train", "--json"]
    assert json.loads(runner.invoke(app, listed).stdout)["splits"] == {"test": 4, "train": 56}
    assert isinstance(runner.invoke(app, listed).exception, OutputError)
    told = ["filter", source, "--out", out, "--sex", "F", "--age", "10", "30", "--view", "frontal", "--overwrite"]
    assert runner.invoke(app, told).exit_code == 0
    assert [one.study for one in Manifest.read(out).rows] == ["s0", "s1"]
    assert runner.invoke(app, ["sample", source, "--out", out, "-n", "5", "--overwrite"]).exit_code == 0
    assert len(Manifest.read(out).studies()) == 5
    for wrong in (["--list", "elsewhere=x"], ["--rest", "train"], ["--val", "1"]):
        assert isinstance(runner.invoke(app, ["split", source, "--out", out, *wrong]).exception, InputError)


def test_check_counts_by_split_view_label_and_sex(manifest: Manifest, tmp_path: Path) -> None:
    told = ["check", str(tmp_path / "m.jsonl"), "--no-files", "--json"]
    counted = json.loads(CliRunner().invoke(app, told).stdout)
    assert counted["images"] == {"train/frontal": 60, "train/lateral": 1}
    assert counted["sexes"] == {"train/F": 2, "train/M": 1, "train/unknown": 57}
    assert counted["ages"] == {"train": "20 to 70, unknown 57"}
    assert counted["labels"]["Edema"]["present"] == 1
