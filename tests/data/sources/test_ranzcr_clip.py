"""RANZCR CLiP, made up."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.data.sources.conftest import image
from xgem.data.sources import ranzcr_clip
from xgem.labels.terms import CATHETERS
from xgem.labels.vocabulary import annotated_labels
from xgem.types import DataError

HEAD = f"StudyInstanceUID,{','.join(CATHETERS)},PatientID\n"
NONE = ",0" * len(CATHETERS)


def release(source: Path, chest, first: str = "0,0,1,0,0,0,0,0,1,0,0") -> Path:
    for name in ("1.2.3", "1.2.4"):
        image(source / f"train/{name}.jpg", chest)
    image(source / "test/1.2.9.jpg", chest)
    (source / "train.csv").write_text(f"{HEAD}1.2.3,{first},p1\n1.2.4{NONE},p1\n1.2.5{NONE},p2\n")
    return source


def test_catheters_are_labels(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        first, second = ranzcr_clip.prepare(release(tmp_path / "r", chest), tmp_path / "m.parquet").rows
    assert "1 of 3 listed images" in caplog.text
    assert first.labels == ("ETT - Normal", "CVC - Borderline")
    assert annotated_labels(first.labels, first.source) == {"Support Devices": 1}
    assert (second.labels, annotated_labels(second.labels, second.source)) == ((), {})
    assert (first.subject, first.split, first.view) == (second.subject, second.split, "frontal")


def test_refusals(tmp_path: Path, chest) -> None:
    with pytest.raises(DataError, match=r"has no train\.csv"):
        ranzcr_clip.prepare(tmp_path, tmp_path / "m.jsonl")
    with pytest.raises(DataError, match=r"image 1\.2\.3\.jpg: ETT - Abnormal is '2'; expected 0 or 1"):
        ranzcr_clip.prepare(release(tmp_path / "r", chest, "2,0,1,0,0,0,0,0,1,0,0"), tmp_path / "m.jsonl")
    (tmp_path / "train.csv").write_text("StudyInstanceUID,PatientID\n")
    with pytest.raises(DataError, match="column 'ETT - Abnormal' is missing"):
        ranzcr_clip.prepare(tmp_path, tmp_path / "m.jsonl")
    (tmp_path / "train.csv").write_text(f"{HEAD}1.2.8{NONE},p1\n")
    with pytest.raises(DataError, match="none of its 1 images"):
        ranzcr_clip.prepare(tmp_path, tmp_path / "m.jsonl")
