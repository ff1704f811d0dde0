"""Object-CXR, made up."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.data.sources.conftest import image
from xgem.data.mask_files import stored_mask
from xgem.data.sources import object_cxr
from xgem.labels.vocabulary import annotated_labels
from xgem.types import DataError


def release(source: Path, chest, first: str = "0 4 8 12 20;1 20 20 31 27;2 30 2 38 2 38 10") -> Path:
    for name in ("train/1.jpg", "train/2.jpg", "dev/1.jpg"):
        image(source / name, lambda *_: chest(40, 40))
    (source / "train.csv").write_text(f"image_name,annotation\n1.jpg,{first}\n2.jpg,\ngone.jpg,\n")
    (source / "dev.csv").write_text("image_path,annotation\n/home/data/dev/1.jpg,0 30 30 60 35;0 50 50 60 60\n")
    return source


def test_objects_are_boxes_and_one_mask(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture) -> None:
    source = release(tmp_path / "o", chest)
    (source / "dev/1.jpg").rename(source / "dev/3.jpg")
    (source / "dev.csv").write_text((source / "dev.csv").read_text().replace("1.jpg", "3.jpg"))
    with caplog.at_level(logging.WARNING):
        made = object_cxr.prepare(source, tmp_path / "m.parquet")
    first, second, dev = made.rows
    assert "object-cxr, train: 1 of 3 listed images" in caplog.text
    assert "1 boxes reach over the edge" in caplog.text
    assert "1 boxes have no area" in caplog.text
    assert [(box.label, box.x, box.y, box.w, box.h) for box in first.boxes] == [
        ("foreign object", 0.1, 0.2, 0.2, 0.3),
        ("foreign object", 0.5, 0.5, 0.275, 0.175),
        ("foreign object", 0.75, 0.05, 0.2, 0.2),
    ]
    mask = stored_mask(made.masks(first)["foreign object"][0])[0]
    assert mask[8:21, 4:13].all()
    assert (mask[24, 25], mask[20, 20], mask[3, 36], mask[9, 31]) == (True, False, True, False)
    assert (first.labels, second.labels) == (("Foreign Object",), ("no Foreign Object",))
    assert annotated_labels(first.labels, "object-cxr") == annotated_labels(second.labels, "object-cxr") == {}
    assert (second.boxes, second.masks, second.split) == ((), {}, "train")
    assert (dev.split, [(box.x, box.w) for box in dev.boxes]) == ("val", [(0.75, 0.25)])


@pytest.mark.parametrize("annotation", ["3 1 2 3 4", "0 1 2 3", "2 1 2 3 4", "0 a b c d", "2 1 2 3 4 5", "1 1 2 nan 4"])
def test_what_is_no_object_is_refused(tmp_path: Path, chest, annotation: str) -> None:
    with pytest.raises(DataError, match=rf"image 1\.jpg: object '{annotation}'; expected 0 or 1"):
        object_cxr.prepare(release(tmp_path / "o", chest, annotation), tmp_path / "out/m.jsonl")
    assert not (tmp_path / "out").exists()


def test_refusals(tmp_path: Path, chest) -> None:
    with pytest.raises(DataError, match="not an Object-CXR folder"):
        object_cxr.prepare(tmp_path, tmp_path / "m.jsonl")
    (tmp_path / "dev.csv").write_text("name,annotation\n")
    with pytest.raises(DataError, match="column 'image_name' is missing"):
        object_cxr.prepare(tmp_path, tmp_path / "m.jsonl")
    (tmp_path / "dev.csv").write_text("image_name,annotation\na.jpg,\n")
    with pytest.raises(DataError, match="none of its 1 images"):
        object_cxr.prepare(tmp_path, tmp_path / "m.jsonl")
