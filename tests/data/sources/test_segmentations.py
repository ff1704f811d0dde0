"""Masks of the COVID-19 image data collection, made small, and the real ones where they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from tests.data.sources.conftest import MASKS
from xgem.data.manifest import Manifest, split_of
from xgem.data.sources import segmentations
from xgem.data.sources.cases import case_of
from xgem.data.tables import read_table
from xgem.types import DataError


def test_segmentations(masks: Path, tmp_path: Path):
    made = segmentations.prepare(masks, tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet") == made
    first, second = made.rows
    assert (first.study, first.view, first.file) == (
        "segmentations-case-2-day1",
        "frontal",
        "masks/images/case-2-day1.png",
    )
    assert first.masks == {
        "left lung": ("masks/masks/m0.png",),
        "device": ("masks/masks/m1.png", "masks/masks/m2.png"),
        "ground glass opacity": ("masks/masks/m3.png",),
    }
    assert (first.labels, first.age, first.sex) == (("COVID-19", "ARDS"), 40, "M")
    assert (second.labels, second.age, second.sex) == ((), None, None)
    assert [row.licence for row in made.rows] == ["masks CC BY 4.0, image CC BY", "masks CC BY 4.0, image unknown"]
    assert first.subject == second.subject
    assert first.split == split_of(first.subject, val=0.2, test=0)
    assert made.summary()["masks"] == {"left lung": 1, "right lung": 1, "ground glass opacity": 1, "device": 2}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("m0.png,Left Lung", "m0.png,Heart", r"mask m0\.png outlines 'Heart'; expected one of left lung"),
        ("case-2-day9.png", "other.png", r"image 'other\.png' is not in images"),
        ("m4.png", "m5.png", r"mask 'm5\.png' of case-2-day9\.png is not in masks"),
        ("m3.png,Ground Glass Opacities,PA", "m3.png,Consolidation,AP", "several values of view: AP, PA"),
        ("Right Lung,AP", "Right Lung,L", "view 'L'; expected PA or AP"),
        ("structure", "organ", "column 'structure'"),
        (MASKS[MASKS.index("case") :], "", "lists no masks"),
    ],
)
def test_segmentations_refusals(masks: Path, tmp_path: Path, old: str, new: str, words: str):
    assert old in MASKS
    (masks / "masks.csv").write_text(MASKS.replace(old, new))
    with pytest.raises(DataError, match=words):
        segmentations.prepare(masks, tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()


def test_segmentations_refuse_files_that_are_no_masks(masks: Path, tmp_path: Path):
    with Image.open(masks / "masks/m1.png") as mask:
        cropped = mask.crop((0, 0, 40, 39))
    cropped.save(masks / "masks/m1.png")
    with pytest.raises(DataError, match=r"m1\.png: a mask of \(40, 39\) pixels for an image of \(40, 40\)"):
        segmentations.prepare(masks, tmp_path / "m.jsonl")
    (masks / "masks/m1.png").write_bytes(b"no PNG")
    with pytest.raises(DataError, match=r"m1\.png: not an image; expected a mask"):
        segmentations.prepare(masks, tmp_path / "m.jsonl")
    with pytest.raises(DataError, match="not a folder of masks"):
        segmentations.prepare(tmp_path / "none", tmp_path / "m.jsonl")


@pytest.mark.data
def test_real_segmentations(data_dir: Path, tmp_path: Path):
    made = segmentations.prepare(data_dir / "segmentations", tmp_path / "m.parquet")
    made.check()
    assert len(made.rows) == 100
    assert made.summary()["masks"] == {
        "left lung": 99,
        "right lung": 100,
        "cardiomediastinum": 100,
        "airways": 99,
        "ground glass opacity": 93,
        "consolidation": 32,
        "pleural effusion": 2,
        "pneumothorax": 1,
        "device": 62,
    }
    pages: dict[str, set[str]] = {}
    for record in read_table(data_dir / "segmentations/masks.csv", "image", "image_url").rows:
        pages.setdefault(record["image_url"], set()).add(case_of(Path(record["image"]).stem))
    assert [page for page, subjects in pages.items() if len(subjects) > 1] == []
    assert 10 <= sum(row.split == "val" for row in made.rows) <= 30
