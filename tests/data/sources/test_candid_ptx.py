"""CANDID-PTX, made up."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import dataset
from xgem.data.mask_files import stored_mask
from xgem.data.sources import candid_ptx
from xgem.labels.vocabulary import annotated_labels
from xgem.types import DataError

HEAD = "filename,SOPInstanceUID,StudyInstanceUID,EncodedPixels,Report\n"
REPORT = '"FINDINGS: Left apical pneumothorax.\n\nIMPRESSION: Pneumothorax."'
BLOCK = "0 4 1020 4 1020 4 1020 4"  # 4 x 4 pixels


def release(source: Path, chest, first: str = BLOCK) -> Path:
    folder = source / "dataset"
    folder.mkdir(parents=True)
    stored = dataset(np.zeros((1024, 1024), np.uint8), bits=8, PatientAge="061Y", PatientSex="F")
    stored.save_as(folder / "9.8.7.1", enforce_file_format=True)
    Image.new("L", (512, 512)).save(folder / "9.8.7.2.png")
    (source / "Pneumothorax_reports.csv").write_text(
        f"{HEAD}P0001_20110101_1.dcm,9.8.7.1,s1,{first},{REPORT}\n"
        f"P0001_20110101_1.dcm,9.8.7.1,s1,8192 4,{REPORT}\n"
        "P0001_20120101_1.dcm,9.8.7.2,s2,-1,No pneumothorax.\n"
        "P0002_20120101_1.dcm,9.8.7.3,s3,,\n"
    )
    (source / "chest_tube.csv").write_text(f"anon_SOPUID,mask_rle\n9.8.7.1,-1\n9.8.7.2,{BLOCK}\n9.9.9,{BLOCK}\n")
    (source / "Rib_fracture_mask_rle.csv").write_text(f"anon_SOPUID,mask_rle\n9.8.7.2,{BLOCK}\n")
    return source


def test_three_tables(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = candid_ptx.prepare(release(tmp_path / "c", chest), tmp_path / "m.parquet")
    first, second = made.rows
    assert "1 of 3 listed images" in caplog.text
    assert (first.labels, first.age, first.sex) == (("Pneumothorax", "no Chest Tube"), 61, "F")
    assert (first.findings, first.impression) == ("Left apical pneumothorax.", "Pneumothorax.")
    assert first.masks == {"pneumothorax": ("candid-ptx-masks/9.8.7.1.pneumothorax.png",)}
    mask = stored_mask(made.masks(first)["pneumothorax"][0])[0]
    assert (mask.shape, mask.sum(), mask[:4, :4].all(), mask[:4, 8].all()) == ((1024, 1024), 20, True, True)
    assert second.labels == ("no Pneumothorax", "Rib Fracture", "Chest Tube")
    assert (second.impression, second.age, second.subject) == ("No pneumothorax.", None, first.subject)
    assert set(second.masks) == {"rib fracture", "device"}
    assert stored_mask(made.masks(second)["device"][0])[0].sum() == 4
    assert annotated_labels(first.labels, "candid-ptx") == {"No Finding": 0, "Pneumothorax": 1}
    assert annotated_labels(second.labels, "candid-ptx") == {
        "No Finding": 0,
        "Pneumothorax": 0,
        "Fracture": 1,
        "Support Devices": 1,
    }


def test_refusals(tmp_path: Path, chest) -> None:
    with pytest.raises(DataError, match=r"has no Pneumothorax_reports\.csv"):
        candid_ptx.prepare(tmp_path, tmp_path / "m.jsonl")
    source = release(tmp_path / "c", chest, "1 2 3")
    with pytest.raises(DataError, match=r"image 9\.8\.7\.1, Pneumothorax: run lengths are '1 2 3'"):
        candid_ptx.prepare(source, tmp_path / "out/m.jsonl")
    reports = source / "Pneumothorax_reports.csv"
    reports.write_text(f"{HEAD}P1_2.dcm,9.8.7.2,s,{BLOCK},x\n")
    Image.new("L", (512, 500)).save(source / "dataset/9.8.7.2.png")
    with pytest.raises(DataError, match="512 x 500 pixels, but its annotations are of 1024 x 1024"):
        candid_ptx.prepare(source, tmp_path / "out/m.jsonl")
    (source / "9.8.7.2.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"image 9\.8\.7\.2 is in .* keep one of them"):
        candid_ptx.prepare(source, tmp_path / "out/m.jsonl")
    (source / "9.8.7.2.png").unlink()
    reports.write_text(f"{HEAD}P1_2.dcm,1.1.1,s,-1,x\n")
    with pytest.raises(DataError, match="none of its 1 images"):
        candid_ptx.prepare(source, tmp_path / "out/m.jsonl")
    reports.write_text("filename,SOPInstanceUID,EncodedPixels\n")
    with pytest.raises(DataError, match="column 'Report' is missing"):
        candid_ptx.prepare(source, tmp_path / "out/m.jsonl")
    assert not (tmp_path / "out").exists()
