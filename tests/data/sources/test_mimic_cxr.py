"""MIMIC-CXR as JPEG and as DICOM, made up."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pytest

from tests.data.conftest import dataset
from tests.data.sources.conftest import image
from xgem.data.manifest import Manifest
from xgem.data.sources import mimic_cxr
from xgem.labels.vocabulary import annotated_labels
from xgem.types import DataError

META = "dicom_id,subject_id,study_id,ViewPosition,Rows,Columns,StudyDate,StudyTime,ViewCodeSequence_CodeMeaning\n"
ROWS = (
    "aa,10000032,50414267,PA,9,9,21800506,213014.5,postero-anterior\n"
    "ab,10000032,50414267,LATERAL,9,9,21800506,213014.5,lateral\n"
    "ac,11000032,50000002,,9,9,21790101,1.5,antero-posterior\n"
    "ad,11000032,50000002,LAO,9,9,21790101,1.5,\n"
    "gone,11000032,50000003,PA,9,9,21790101,1.5,\n"
)
REPORT = "FINAL REPORT\n FINDINGS:\n\n The lungs are clear.\n\n IMPRESSION:\n\n No acute process in ___.\n"
CLASSES = "Atelectasis,Cardiomegaly,Edema,No Finding,Pleural Effusion,Support Devices"


def jpeg_release(source: Path, chest) -> Path:
    for patient, study, name in (
        ("p10/p10000032", "s50414267", "aa"),
        ("p10/p10000032", "s50414267", "ab"),
        ("p11/p11000032", "s50000002", "ac"),
        ("p11/p11000032", "s50000002", "ad"),
    ):
        image(source / "files" / patient / study / f"{name}.jpg", chest)
    (source / "files/p10/p10000032/s50414267.txt").write_text(REPORT)
    (source / "mimic-cxr-2.0.0-metadata.csv.gz").write_bytes(gzip.compress((META + ROWS).encode()))
    (source / "mimic-cxr-2.0.0-split.csv").write_text(
        "dicom_id,study_id,subject_id,split\naa,50414267,10000032,validate\nab,50414267,10000032,validate\n"
        "ac,50000002,11000032,test\nad,50000002,11000032,test\n"
    )
    (source / "mimic-cxr-2.0.0-chexpert.csv").write_text(
        f"subject_id,study_id,{CLASSES}\n10000032,50414267,1.0,0.0,-1.0,,,\n11000032,50000002,,,,1.0,,\n"
    )
    (source / "patients.csv").write_text(
        "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod\n10000032,F,52,2180,2014 - 2016,\n"
    )
    return source


def test_the_jpeg_release(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture) -> None:
    source = jpeg_release(tmp_path / "mimic", chest)
    with caplog.at_level(logging.WARNING):
        made = mimic_cxr.prepare(source, tmp_path / "m.parquet")
    assert "1 of 5 listed images" in caplog.text
    assert "1 of 2 studies have no report" in caplog.text
    assert [row.view for row in made.rows] == ["frontal", "lateral", "frontal", None]
    assert [row.split for row in made.rows] == ["val", "val", "test", "test"]
    first, _, other, _ = made.rows
    assert (first.study, first.subject) == ("mimic-cxr-50414267", "mimic-cxr-10000032")
    assert first.file == "mimic/files/p10/p10000032/s50414267/aa.jpg"
    assert (first.findings, first.impression) == ("The lungs are clear.", "No acute process.")
    assert (first.age, first.sex) == (52, "F")
    assert (other.age, other.sex, other.findings, other.impression) == (None, None, "", "")
    assert first.labels == ("no Cardiomegaly", "possible Edema", "Atelectasis")  # in the order of the classes
    # A blank beside zeros is unknown
    assert annotated_labels(first.labels, first.source) == {"No Finding": 0, "Cardiomegaly": 0, "Atelectasis": 1}
    assert annotated_labels(other.labels, other.source) == {"No Finding": 1}
    assert Manifest.read(tmp_path / "m.parquet") == made


def test_the_dicom_release(tmp_path: Path, chest) -> None:
    source = tmp_path / "mimic"
    place = source / "files/p10/p10000032/s50414267"
    place.mkdir(parents=True)
    for name, position in (("aa", "AP"), ("ab", "LL")):
        dataset(chest(40, 40), bits=8, ViewPosition=position).save_as(place / f"{name}.dcm", enforce_file_format=True)
    place.with_suffix(".txt").write_text("The lungs are clear.")
    (source / "cxr-record-list.csv").write_text(
        "subject_id,study_id,dicom_id,path\n"
        "10000032,50414267,aa,files/p10/p10000032/s50414267/aa.dcm\n"
        "10000032,50414267,ab,files/p10/p10000032/s50414267/ab.dcm\n"
    )
    made = mimic_cxr.prepare(source, tmp_path / "m.jsonl")
    assert [row.view for row in made.rows] == ["frontal", "lateral"]
    assert {row.impression for row in made.rows} == {"The lungs are clear."}
    assert {row.labels for row in made.rows} == {()}


def test_refusals(tmp_path: Path, chest) -> None:
    with pytest.raises(DataError, match="not a MIMIC-CXR folder"):
        mimic_cxr.prepare(tmp_path, tmp_path / "m.jsonl")
    source = jpeg_release(tmp_path / "mimic", chest)
    labels = source / "mimic-cxr-2.0.0-chexpert.csv"
    labels.write_text(f"subject_id,study_id,{CLASSES}\n10000032,50414267,2.0,,,,,\n")
    with pytest.raises(DataError, match="study 50414267: Atelectasis is 2; expected 1, 0, -1"):
        mimic_cxr.prepare(source, tmp_path / "m.jsonl")
    labels.unlink()
    for path in source.rglob("*.jpg"):
        path.unlink()
    with pytest.raises(DataError, match="none of its 5 images"):
        mimic_cxr.prepare(source, tmp_path / "m.jsonl")
