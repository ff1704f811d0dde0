"""BRAX, made up."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.data.conftest import dataset
from tests.data.sources.conftest import image
from xgem.data.sources import brax
from xgem.labels.vocabulary import CHEXPERT_CLASSES, annotated_labels
from xgem.types import DataError

HEAD = (
    "DicomPath,PngPath,PatientID,PatientSex,PatientAge,AccessionNumber,StudyDate,"
    + ",".join(CHEXPERT_CLASSES)
    + ",ViewPosition,Rows,Columns,Manufacturer\n"
)
BLANK = "," * 12


def line(image: str, patient: str, sex: str, age: str, study: str, labels: str, view: str) -> str:
    dicom, png = (f"{folder}/{image}.{end}" for folder, end in (("Anonymized_DICOMs", "dcm"), ("images", "png")))
    return f"{dicom},{png},{patient},{sex},{age},{study},20080101,{labels},{view},100,80,3\n"


def release(source: Path, chest, first: str = f",,1.0{BLANK[:-1]}") -> Path:
    for name in ("p1/s1/q/front", "p1/s1/q/side"):
        image(source / f"images/{name}.png", chest)
    (source / "Anonymized_DICOMs/p2/s2/q").mkdir(parents=True)
    dataset(chest(40, 40), bits=8).save_as(source / "Anonymized_DICOMs/p2/s2/q/front.dcm", enforce_file_format=True)
    (source / "master_spreadsheet_update.csv").write_text(
        HEAD
        + line("p1/s1/q/front", "id_1", "F", "85 or more", "1", first, "PA")
        + line("p1/s1/q/side", "id_1", "F", "85 or more", "1", first, "L")
        + line("p2/s2/q/front", "id_2", "O", "40", "2", f"1.0,,0.0{BLANK[:-1]}", "RLD")
        + line("p3/s3/q/front", "id_3", "M", "20", "3", f",,-1.0{BLANK[:-1]}", "AP")
    )
    return source


def test_brax(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows = brax.prepare(release(tmp_path / "b", chest), tmp_path / "m.parquet").rows
    assert "1 of 4 listed images" in caplog.text
    assert [(row.study, row.view) for row in rows] == [
        ("brax-1", "frontal"),
        ("brax-1", "lateral"),
        ("brax-2", None),
    ]
    assert [Path(row.file or "").suffix for row in rows] == [".png", ".png", ".dcm"]
    assert [(row.age, row.sex) for row in rows[1:]] == [(85, "F"), (40, None)]
    assert annotated_labels(rows[0].labels, "brax") == {"No Finding": 0, "Cardiomegaly": 1}
    assert annotated_labels(rows[2].labels, "brax") == {"No Finding": 1, "Cardiomegaly": 0}
    assert rows[0].split == rows[1].split


def test_refusals(tmp_path: Path, chest) -> None:
    with pytest.raises(DataError, match="not a BRAX folder"):
        brax.prepare(tmp_path, tmp_path / "m.jsonl")
    with pytest.raises(DataError, match="Cardiomegaly is 7; expected 1, 0, -1"):
        brax.prepare(release(tmp_path / "b", chest, f",,7{BLANK[:-1]}"), tmp_path / "m.jsonl")
    table = tmp_path / "c" / "master_spreadsheet.csv"
    table.parent.mkdir()
    table.write_text(HEAD.replace("PatientAge", "Age"))
    with pytest.raises(DataError, match="column 'PatientAge' is missing"):
        brax.prepare(table.parent, tmp_path / "m.jsonl")
    table.write_text(HEAD.replace("DicomPath,PngPath", "A,B"))
    with pytest.raises(DataError, match="column 'PngPath' is missing"):
        brax.prepare(table.parent, tmp_path / "m.jsonl")
    table.write_text(HEAD + line("p3/s3/q/front", "id_3", "M", "20", "3", f",,-1.0{BLANK[:-1]}", "AP"))
    with pytest.raises(DataError, match="none of its 1 images"):
        brax.prepare(table.parent, tmp_path / "m.jsonl")
