"""SIIM-ACR Pneumothorax, made up."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import dataset
from tests.data.sources.conftest import image
from xgem.data.mask_files import stored_mask
from xgem.data.sources import siim_acr
from xgem.labels.vocabulary import annotated_labels
from xgem.types import DataError

# Two columns of two pixels on 1024 x 1024: (x 0, y 3..4) and, of the second row, (x 2, y 0..1)
FIRST, SECOND = "3 2", "2048 2"


def square(path: Path, side: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (side, side), 99).save(path)


def release(source: Path, chest, rows: str = f"1.2.3, {FIRST}\n1.2.3, {SECOND}\n1.2.4, -1\n1.2.5, -1\n") -> Path:
    for name, tags in (
        ("s/t/1.2.3", {"PatientID": "p1", "PatientAge": "058Y", "PatientSex": "M", "ViewPosition": "PA"}),
        ("s/u/1.2.4", {"PatientID": "p2", "PatientAge": "413Y"}),
    ):
        path = source / f"dicom-images-train/{name}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset(np.zeros((1024, 1024), np.uint8), bits=8, **tags).save_as(path, enforce_file_format=True)
    (source / "train-rle.csv").write_text(f"ImageId, EncodedPixels\n{rows}")
    return source


def test_masks_of_an_image_are_united(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "made" / "m.parquet"
    with caplog.at_level(logging.WARNING):
        made = siim_acr.prepare(release(tmp_path / "s", chest), out)
    first, second = made.rows
    assert "1 of 3 listed images" in caplog.text
    assert (first.labels, first.age, first.sex, first.view) == (("Pneumothorax",), 58, "M", "frontal")
    assert first.masks == {"pneumothorax": ("siim-acr-masks/1.2.3.pneumothorax.png",)}
    (file,) = made.masks(first)["pneumothorax"]
    mask = stored_mask(file)[0]
    assert mask.shape == (1024, 1024)
    assert {(int(x), int(y)) for y, x in np.argwhere(mask)} == {(0, 3), (0, 4), (2, 0), (2, 1)}
    assert Image.open(file).mode == "1"
    assert (second.labels, second.masks, second.age) == (("no Pneumothorax",), {}, None)
    assert annotated_labels(first.labels, "siim-acr") == {"No Finding": 0, "Pneumothorax": 1}
    assert annotated_labels(second.labels, "siim-acr") == {"Pneumothorax": 0}
    # A second time nothing is written
    before = file.stat().st_mtime_ns
    siim_acr.prepare(tmp_path / "s", out)
    assert file.stat().st_mtime_ns == before


def test_copies_of_another_size_and_the_published_test(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "s"
    for name in ("dicom-images-train/1.2.3", "dicom-images-test/1.2.4"):
        square(source / f"{name}.png", 512)
    # A block of 4 x 4 pixels from (0, 0), column by column
    (source / "stage_2_train.csv").write_text("ImageId,EncodedPixels\n1.2.3,0 4 1020 4 1020 4 1020 4\n1.2.4,-1\n")
    made = siim_acr.prepare(source, tmp_path / "m.jsonl")
    (file,) = made.masks(made.rows[0])["pneumothorax"]
    mask = stored_mask(file)[0]
    assert (mask.shape, mask.sum(), mask[:2, :2].all()) == ((512, 512), 4, True)
    assert made.rows[0].split in ("train", "val")
    assert [(row.split, row.subject, row.age) for row in made.rows[1:]] == [("test", "siim-acr-1.2.4", None)]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("1.2.3, 3 2 1\n", r"image 1\.2\.3: run lengths are '3 2 1'; expected pairs"),
        ("1.2.3, a b\n", "run lengths are 'a b'"),
        ("1.2.3, 1048570 9\n", "lies beyond the image of 1024 x 1024"),
        ("1.2.3, 5 0\n", "a run has no length"),
        ("1.2.3, -1\n1.2.3, 3 2\n", "has run lengths, and -1 for none"),
        ("1.2.9, -1\n", "none of its 1 images"),
    ],
)
def test_refusals(tmp_path: Path, chest, rows: str, words: str) -> None:
    with pytest.raises(DataError, match=words):
        siim_acr.prepare(release(tmp_path / "s", chest, rows), tmp_path / "out" / "m.jsonl")
    assert not (tmp_path / "out").exists()


def test_other_folders_and_shapes_are_refused(tmp_path: Path, chest) -> None:
    with pytest.raises(DataError, match=r"not a SIIM-ACR folder; expected train-rle\.csv or stage_2_train\.csv"):
        siim_acr.prepare(tmp_path, tmp_path / "m.jsonl")
    (tmp_path / "train-rle.csv").write_text("ImageId,Pixels\n")
    with pytest.raises(DataError, match="column 'EncodedPixels' is missing"):
        siim_acr.prepare(tmp_path, tmp_path / "m.jsonl")
    (tmp_path / "train-rle.csv").write_text("ImageId,EncodedPixels\nx,3 2\n")
    image(tmp_path / "x.png", lambda *_: np.zeros((40, 32), np.uint8))
    with pytest.raises(DataError, match=r"x\.png: 32 x 40 pixels, but its annotations are of 1024 x 1024"):
        siim_acr.prepare(tmp_path, tmp_path / "m.jsonl")
