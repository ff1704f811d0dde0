"""CheXpert, made up."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.data.sources.conftest import image
from xgem.data.sources import chexpert
from xgem.labels.vocabulary import CHEXPERT_CLASSES, annotated_labels
from xgem.types import DataError

HEAD = "Path,Sex,Age,Frontal/Lateral,AP/PA," + ",".join(CHEXPERT_CLASSES) + "\n"
BLANK = "," * 12


def release(source: Path, chest, part: str = "") -> Path:
    for name in ("train/patient00001/study1/view1_frontal.jpg", "train/patient00001/study1/view2_lateral.jpg"):
        image(source / part / name, chest)
    image(source / part / "train/patient00002/study1/view1_frontal.jpg", chest)
    image(source / "valid/patient64541/study1/view1_frontal.jpg", chest)
    root = "CheXpert-v1.0-small/train"
    (source / "train.csv").write_text(
        f"{HEAD}{root}/patient00001/study1/view1_frontal.jpg,Female,68,Frontal,AP,,0.0,1.0{BLANK[:-1]}\n"
        f"{root}/patient00001/study1/view2_lateral.jpg,Female,68,Lateral,,,0.0,1.0{BLANK[:-1]}\n"
        f"{root}/patient00002/study1/view1_frontal.jpg,Unknown,0,Frontal,PA,,,-1.0{BLANK[:-1]}\n"
        f"{root}/patient00003/study1/view1_frontal.jpg,Male,50,Frontal,PA,1.0,,{BLANK[:-1]}\n"
    )
    (source / "valid.csv").write_text(
        f"{HEAD}CheXpert-v1.0-small/valid/patient64541/study1/view1_frontal.jpg,Male,73,Frontal,AP"
        + ",0.0" * 13
        + ",1.0\n"
    )
    return source


@pytest.mark.parametrize("part", ["", "CheXpert-v1.0 batch 2 (train 1)"])
def test_both_tables(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture, part: str) -> None:
    with caplog.at_level(logging.WARNING):
        made = chexpert.prepare(release(tmp_path / "c", chest, part), tmp_path / "m.jsonl")
    assert "1 of 4 listed images" in caplog.text
    assert [row.view for row in made.rows] == ["frontal", "lateral", "frontal", "frontal"]
    assert [row.study for row in made.rows[:2]] == ["chexpert-v1-patient00001-study1"] * 2
    assert [row.split for row in made.rows][3] == "val"
    assert {row.split for row in made.rows[:3]} <= {"train", "test"}
    assert [(row.age, row.sex) for row in made.rows] == [(68, "F"), (68, "F"), (None, None), (73, "M")]
    labels = [annotated_labels(row.labels, row.source) for row in made.rows]
    assert labels[0] == {"No Finding": 0, "Cardiomegaly": 1}  # the wider class is unknown, 0 or not
    assert labels[2] == {}  # in doubt: unknown, and no study without findings
    assert labels[3] == dict.fromkeys(CHEXPERT_CLASSES, 0) | {"Support Devices": 1}


def test_a_published_test_split_leaves_train_whole(tmp_path: Path, chest) -> None:
    source = release(tmp_path / "c", chest)
    (source / "test.csv").write_text(
        (source / "valid.csv").read_text().replace("valid/patient64541", "test/patient64741")
    )
    image(source / "test/patient64741/study1/view1_frontal.jpg", chest)
    made = chexpert.prepare(source, tmp_path / "m.jsonl")
    assert [row.split for row in made.rows] == ["train"] * 3 + ["val", "test"]


def test_refusals(tmp_path: Path, chest) -> None:
    with pytest.raises(DataError, match=r"has no train\.csv"):
        chexpert.prepare(tmp_path, tmp_path / "m.jsonl")
    source = release(tmp_path / "c", chest)
    text = (source / "train.csv").read_text()
    (source / "train.csv").write_text(text.replace(",Lateral,", ",Oblique,"))
    with pytest.raises(DataError, match="Frontal/Lateral is 'oblique'"):
        chexpert.prepare(source, tmp_path / "m.jsonl")
    (source / "train.csv").write_text(text.replace("-1.0", "yes"))
    with pytest.raises(DataError, match="Cardiomegaly is 'yes'; expected a number"):
        chexpert.prepare(source, tmp_path / "m.jsonl")
