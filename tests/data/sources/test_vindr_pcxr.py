"""VinDr-PCXR, made up."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.data.conftest import dataset
from xgem.data.sources import vindr_pcxr
from xgem.labels.vocabulary import annotated_labels
from xgem.types import DataError

COLUMNS = "No finding,Bronchitis,Brocho-pneumonia,Pneumonia"
BOXES = """image_id,rad_ID,class_name,x_min,y_min,x_max,y_max
a,R1,Diffuse aveolar opacity,8,24,40,48
a,R1,Diffuse aveolar opacity,40,24,81,48
a,R1,Cardiomegaly,10,2,50,50
b,R1,No finding,,,,
"""


def release(source: Path, chest) -> Path:
    images = {
        "train/a": {"PatientAge": "006M", "PatientSex": "M"},
        "train/b": {"PatientAge": "000Y", "PatientSex": "F"},
        "test/c": {},
    }
    for name, tags in images.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        dataset(chest(96, 80), bits=8, **tags).save_as(source / f"{name}.dicom", enforce_file_format=True)
    (source / "image_labels_train.csv").write_text(f"image_id,rad_ID,{COLUMNS}\na,R1,0,0,1,0\nb,R1,1,0,0,0\n")
    (source / "annotations_train.csv").write_text(BOXES)
    (source / "image_labels_test.csv").write_text(f"image_id,rad_ID,{COLUMNS}\nc,R2,0,1,0,0\ngone,R2,1,0,0,0\n")
    return source


def test_diseases_are_columns_and_findings_are_boxes(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        a, b, c = vindr_pcxr.prepare(release(tmp_path / "v", chest), tmp_path / "m.parquet").rows
    assert "vindr-pcxr, test: 1 of 2 listed images" in caplog.text
    assert "1 boxes reach over the edge" in caplog.text
    assert a.labels == ("Brocho-pneumonia", "Diffuse aveolar opacity", "Cardiomegaly")
    assert [(box.label, box.x, box.w) for box in a.boxes] == [
        ("diffuse aveolar opacity", 0.1, 0.4),
        ("diffuse aveolar opacity", 0.5, 0.5),
        ("cardiomegaly", 0.125, 0.5),
    ]
    labels = annotated_labels(a.labels, a.source)
    assert (labels["Pneumonia"], labels["Lung Opacity"], labels["Pneumothorax"]) == (1, 1, 0)
    assert "Support Devices" not in labels
    assert (b.labels, b.age, b.sex) == (("No finding",), 0, "F")
    assert (c.labels, c.age, c.sex) == (("Bronchitis",), None, None)
    assert (a.age, c.split, c.study) == (0.5, "test", "vindr-pcxr-c")


def test_refusals(tmp_path: Path, chest) -> None:
    with pytest.raises(DataError, match="not a VinDr-PCXR folder; expected image_labels_train"):
        vindr_pcxr.prepare(tmp_path, tmp_path / "m.jsonl")
    source = release(tmp_path / "v", chest)
    (source / "annotations_train.csv").write_text("image_id,class_name\n")
    with pytest.raises(DataError, match="column 'x_min' is missing"):
        vindr_pcxr.prepare(source, tmp_path / "m.jsonl")
    for path in source.rglob("*.dicom"):
        path.unlink()
    (source / "annotations_train.csv").write_text(BOXES)
    with pytest.raises(DataError, match="none of its 2 images"):
        vindr_pcxr.prepare(source, tmp_path / "m.jsonl")
