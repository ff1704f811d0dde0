"""PadChest, made up."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.data.sources.conftest import image
from xgem.data.sources import padchest
from xgem.labels.vocabulary import annotated_labels
from xgem.types import DataError

HEAD = (
    ",ImageID,ImageDir,StudyDate_DICOM,StudyID,PatientID,PatientBirth,PatientSex_DICOM,Projection,MethodProjection,"
    "MethodLabel,Labels,Report\n"
)
TABLE = "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv"


def release(source: Path, chest, labels: str = "\"['cardiomegaly', 'unchanged', ' NSG tube ']\"") -> Path:
    for name in ("0/a.png", "0/b.png", "1/c.png", "1/d.png"):
        image(source / name, chest)
    manual, guess = "Manual review of DICOM fields", "Predicted by a network"
    (source / TABLE).write_text(
        f"{HEAD}0,a.png,0,20140915,s1,p1,1945.0,F,PA,{manual},Physician,{labels},cardiomegali . sng\n"
        f"1,b.png,0,20140915,s1,p1,1945.0,F,L,{guess},Physician,\"['pleural effusion']\",cardiomegali . sng\n"
        f"2,c.png,1,20150101,s2,p2,,O,AP_horizontal,{manual},RNN_model,['normal'],\n"
        f"3,d.png,1,20150101,s3,p2,,O,COSTAL,{manual},RNN_model,,fractur costal\n"
        f"4,gone.png,1,20150101,s4,p4,1950,M,PA,{manual},RNN_model,['normal'],x\n"
    )
    return source


def test_padchest(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = padchest.prepare(release(tmp_path / "p", chest), tmp_path / "m.parquet")
    assert "1 of 5 listed images" in caplog.text
    assert "projection of 1 of 4 images" in caplog.text
    assert [row.view for row in made.rows] == ["frontal", "lateral", "frontal", None]
    assert [(row.age, row.sex) for row in made.rows[1:3]] == [(69, "F"), (None, None)]
    assert {row.labels for row in made.rows[:2]} == {("cardiomegaly", "NSG tube", "pleural effusion")}
    assert [row.impression for row in made.rows] == ["Cardiomegali. sng."] * 2 + ["", "Fractur costal."]
    labels = annotated_labels(made.rows[0].labels, made.rows[0].source)
    assert [labels[name] for name in ("Cardiomegaly", "Support Devices", "Pleural Effusion", "Edema")] == [1, 1, 1, 0]
    assert annotated_labels(made.rows[2].labels, "padchest")["No Finding"] == 1
    assert made.rows[3].labels == ()


def test_refusals(tmp_path: Path, chest) -> None:
    with pytest.raises(DataError, match="has no PADCHEST_chest"):
        padchest.prepare(tmp_path, tmp_path / "m.jsonl")
    for labels in ("normal", "{'a': 1}"):
        source = release(tmp_path / "p", chest, labels=f'"{labels}"')
        with pytest.raises(DataError, match=r"image a\.png: Labels is .*expected a list"):
            padchest.prepare(source, tmp_path / "m.jsonl")
