"""ChestX-ray14 in both layouts, made small, and the real one where it is."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest

from tests.data.sources.conftest import image
from xgem.data.annotations import Box
from xgem.data.manifest import Manifest
from xgem.data.sources import nih
from xgem.types import DataError


def nih_original(source: Path, chest) -> Path:
    for name in ("00000001_000.png", "00000001_001.png", "00000002_000.png"):
        image(source / "images_001/images" / name, chest)
    (source / "Data_Entry_2017_v2020.csv").write_text(
        "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position\n"
        "00000001_000.png,Cardiomegaly|Pleural_Thickening,0,1,058Y,M,PA\n"
        "00000001_001.png,No Finding,1,1,414,M,AP\n"
        "00000002_000.png,No Finding,0,2,7,F,PA\n"
        "00000003_000.png,No Finding,0,3,7,F,PA\n"
    )
    (source / "test_list.txt").write_text("00000001_000.png\n")
    return source


def test_nih_from_the_original(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        made = nih.prepare(nih_original(tmp_path / "nih", chest), tmp_path / "m.parquet")
    assert "1 of 4" in caplog.text
    assert [row.subject for row in made.rows] == ["nih-1", "nih-1", "nih-2"]
    assert [row.split for row in made.rows[:2]] == ["test", "test"]
    assert made.rows[2].split in ("train", "val")
    assert [row.age for row in made.rows] == [58, None, 7]
    assert made.rows[0].labels == ("Cardiomegaly", "Pleural Thickening")
    assert made.rows[1].labels == ("No Finding",)
    assert [row.sex for row in made.rows] == ["M", "M", "F"]


def test_nih_refusals(tmp_path: Path):
    with pytest.raises(DataError, match="no such folder"):
        nih.prepare(tmp_path / "none", tmp_path / "m.jsonl")
    with pytest.raises(DataError, match="not a ChestX-ray14"):
        nih.prepare(tmp_path, tmp_path / "m.jsonl")
    (tmp_path / "labels.csv").write_text("file,patient_id,age,sex,labels\nx.jpg,1,3,F,Mass\n")
    with pytest.raises(DataError, match=r"x\.jpg"):
        nih.prepare(tmp_path, tmp_path / "m.jsonl")


def nih_listed(source: Path, chest, boxes: str) -> Path:
    """labels.csv + boxes.csv."""
    for name in ("a.png", "b.png"):
        image(source / "images" / name, chest)
    (source / "labels.csv").write_text(
        "file,patient_id,age,sex,view,labels\na.png,1,61,F,PA,Mass\nb.png,2,62,M,AP,No Finding\n"
    )
    (source / "boxes.csv").write_text("file,label,x,y,w,h\n" + boxes)
    return source


def test_nih_boxes(tmp_path: Path, chest):
    source = nih_listed(tmp_path / "nih", chest, "a.png,Mass,0.1,0.2,0.3,0.4\na.png,Infiltrate,0.5,0.5,0.5,0.25\n")
    made = nih.prepare(source, tmp_path / "m.parquet")
    assert made.rows[0].boxes == (Box("mass", 0.1, 0.2, 0.3, 0.4), Box("infiltrate", 0.5, 0.5, 0.5, 0.25))
    assert made.rows[1].boxes == ()
    assert Manifest.read(tmp_path / "m.parquet") == made
    (source / "boxes.csv").unlink()
    assert nih.prepare(source, tmp_path / "m.parquet").rows[0] == made.rows[0].model_copy(update={"boxes": ()})


def test_nih_boxes_of_the_original_are_pixels_of_1024(tmp_path: Path, chest):
    source = nih_original(tmp_path / "nih", chest)
    (source / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "00000001_000.png,Cardiomegaly,256,512,128.0,64,,,\n"
        "00000003_000.png,Mass,1,2,3,4,,,\n"
        "00000009_000.png,Mass,1,2,3,4,,,\n"
    )
    made = nih.prepare(source, tmp_path / "m.jsonl")
    assert [row.boxes for row in made.rows] == [(Box("cardiomegaly", 0.25, 0.5, 0.125, 0.0625),), (), ()]


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ("c.png,Mass,0.1,0.2,0.3,0.4", r"boxes\.csv: a box of c\.png, which labels\.csv does not list"),
        ("a.png,,0.1,0.2,0.3,0.4", r"image a\.png: .*box of class ''"),
        ("a.png,Mass,100,200,300,400", r"image a\.png: .*fractions of its width and height"),
        ("a.png,Mass,left,0.2,0.3,0.4", r"a box of a\.png is 'left'; expected a number"),
        ("a.png,Mass,0.1,0.2", r"boxes\.csv: line 2 has 4 cells, the header .* has 6"),
    ],
)
def test_nih_refuses_boxes(tmp_path: Path, chest, boxes: str, words: str):
    with pytest.raises(DataError, match=words):
        nih.prepare(nih_listed(tmp_path / "nih", chest, boxes + "\n"), tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()


@pytest.mark.data
def test_real_nih(data_dir: Path, tmp_path: Path):
    made = nih.prepare(data_dir / "nih", tmp_path / "m.jsonl")
    made.check()
    assert len(made.rows) == 1705
    assert {row.view for row in made.rows} == {"frontal"}
    assert Counter(row.split for row in made.rows)["train"] > 1200
    assert sum(len(row.boxes) for row in made.rows) == 60
    assert sum(bool(row.boxes) for row in made.rows) == 55
