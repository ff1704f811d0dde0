"""VinDr-CXR, made up."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.data.conftest import dataset
from xgem.data.sources import vindr_cxr
from xgem.labels.vocabulary import annotated_labels
from xgem.types import DataError

COLUMNS = "Cardiomegaly,Nodule/Mass,Pleural effusion,Pneumonia,Other diseases,No finding"
BOXES = """image_id,rad_id,class_name,x_min,y_min,x_max,y_max
a,R1,Cardiomegaly,10,20,30,40
a,R2,Cardiomegaly,12,20,32,40
a,R3,Nodule/Mass,1,2,8,9
a,R1,Pleural effusion,50,80,81,97
a,R2,Pleural effusion,52,80,80,96
b,R1,No finding,,,,
"""


def release(source: Path, chest, boxes: str = BOXES) -> Path:
    images = {
        "train/a": {"PatientAge": "061Y", "PatientSex": "F"},
        "train/b": {"PatientAge": "000Y", "PatientSex": "O"},
        "test/c": {},
    }
    for name, tags in images.items():
        path = source / f"{name}.dicom"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset(chest(96, 80), bits=8, **tags).save_as(path, enforce_file_format=True)
    tables = source / "annotations"
    tables.mkdir(exist_ok=True)
    (tables / "image_labels_train.csv").write_text(
        f"image_id,rad_ID,{COLUMNS}\na,R1,1,0,1,0,0,0\na,R2,1,0,1,0,0,0\na,R3,0,1,0,0,0,0\n"
        + "".join(f"b,R{k},0,0,0,0,0,{int(k < 3)}\n" for k in (1, 2, 3))
        + "gone,R1,0,0,0,0,0,1\n"
    )
    (tables / "annotations_train.csv").write_text(boxes)
    (tables / "image_labels_test.csv").write_text(f"image_id,{COLUMNS}\nc,0,0,0,1,0,0\n")
    (tables / "annotations_test.csv").write_text(
        "image_id,class_name,x_min,y_min,x_max,y_max\nc,Lung Opacity,0,0,40,48\nc,Lung Opacity,1,0,40,48\n"
    )
    return source


def test_readers_are_joined(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = vindr_cxr.prepare(release(tmp_path / "v", chest), tmp_path / "m.parquet")
    assert "1 of 3 listed images" in caplog.text
    assert "1 boxes reach over the edge" in caplog.text
    a, b, c = made.rows
    assert a.labels == ("Cardiomegaly", "Pleural effusion", "possible Nodule/Mass")
    labels = annotated_labels(a.labels, a.source)
    assert (labels["Cardiomegaly"], labels["Pneumonia"]) == (1, 0)
    assert "Lung Lesion" not in labels
    assert [(box.label, box.x, box.y, box.w, box.h) for box in a.boxes] == [
        ("cardiomegaly", 11 / 80, 20 / 96, 20 / 80, 20 / 96),
        ("pleural effusion", 51 / 80, 80 / 96, 29 / 80, 16 / 96),
    ]
    assert (b.labels, b.boxes) == (("No finding",), ())
    assert [(row.age, row.sex) for row in made.rows] == [(61, "F"), (None, None), (None, None)]
    assert (c.split, c.labels) == ("test", ("Pneumonia",))
    # Test is a consensus: both boxes stand
    assert len(c.boxes) == 2
    assert {a.split, b.split} <= {"train", "val"}


def test_refusals(tmp_path: Path, chest) -> None:
    with pytest.raises(DataError, match="not a VinDr-CXR folder"):
        vindr_cxr.prepare(tmp_path, tmp_path / "m.jsonl")
    outside = "image_id,rad_id,class_name,x_min,y_min,x_max,y_max\n" + "".join(
        f"a,R{k},Nodule/Mass,90,2,120,9\n" for k in (1, 2)
    )
    with pytest.raises(DataError, match=r"a box of nodule/mass at .* in 80 x 96 pixels"):
        vindr_cxr.prepare(release(tmp_path / "v", chest, outside), tmp_path / "m.jsonl")
