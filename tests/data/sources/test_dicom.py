"""A folder of DICOM files with reports, made up."""

from __future__ import annotations

import csv
import logging
from pathlib import Path
from typing import Any

import pytest
from pydicom.dataset import Dataset
from typer.testing import CliRunner

from tests.data.conftest import dataset
from xgem.cli.data import app
from xgem.data.manifest import Manifest
from xgem.data.sources import dicom
from xgem.types import DataError, InputError

PATIENT = {"PatientID": "MRN-778", "PatientName": "Miller^Ada", "PatientSex": "F", "PatientBirthDate": "19500601"}


def coded(meaning: str) -> list[Dataset]:
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "1", "X", meaning
    return [code]


def save(path: Path, ds: Dataset) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ds.save_as(path, enforce_file_format=True)


def structured_report(text: str, **tags: Any) -> Dataset:
    ds = dataset_of(**tags)
    del ds.PixelData
    ds.Modality, ds.SOPInstanceUID = "SR", "1.2.9"
    section, item = Dataset(), Dataset()
    section.ValueType, section.ConceptNameCodeSequence = "CONTAINER", coded("Findings")
    item.ValueType, item.ConceptNameCodeSequence, item.TextValue = "TEXT", coded("Finding"), text
    section.ContentSequence = [item]
    ds.ContentSequence = [section]
    return ds


def dataset_of(**tags: Any) -> Dataset:
    import numpy as np

    stored = np.tile(np.arange(40, dtype=np.uint8), (40, 1))
    return dataset(stored, bits=8, **tags)


def export(folder: Path) -> Path:
    one = {**PATIENT, "StudyInstanceUID": "1.2.1", "AccessionNumber": "ACC1", "StudyDate": "20200531"}
    save(folder / "a/pa", dataset_of(**one, SOPInstanceUID="1.2.1.1", ViewPosition="PA"))
    lateral = dataset_of(**one, SOPInstanceUID="1.2.1.2", ViewCodeSequence=coded("left lateral"))
    save(folder / "a/lat.dcm", lateral)
    save(folder / "a/copy.dcm", lateral)
    save(folder / "a/report.dcm", structured_report("Ada Miller has clear lungs. The heart is normal.", **one))
    two = {"PatientID": "MRN-9", "StudyInstanceUID": "1.2.2", "AccessionNumber": "ACC2", "PatientAge": "011M"}
    save(folder / "b/x.dcm", dataset_of(**two, SOPInstanceUID="1.2.2.1"))
    save(folder / "c/ct.dcm", dataset_of(StudyInstanceUID="1.2.3", Modality="CT", SOPInstanceUID="1.2.3.1"))
    save(folder / "c/foot.dcm", dataset_of(StudyInstanceUID="1.2.3", BodyPartExamined="FOOT", SOPInstanceUID="1.2.3.2"))
    save(folder / "c/none.dcm", dataset_of(SOPInstanceUID="1.2.3.3"))
    (folder / "c/notes.pdf").write_bytes(b"%PDF-1.4")
    return folder


def left_out(out: Path) -> dict[str, str]:
    with out.with_name(f"{out.stem}.left-out.csv").open() as stream:
        return {Path(row["file"]).name: row["reason"] for row in csv.DictReader(stream)}


def test_studies_of_a_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "m.jsonl"
    with caplog.at_level(logging.WARNING):
        made = dicom.prepare(export(tmp_path / "export"), out)
    lateral, frontal, other = made.rows
    assert (lateral.view, frontal.view, other.view) == ("lateral", "frontal", None)
    assert lateral.study == frontal.study != other.study
    assert (frontal.age, frontal.sex) == (69, "F")  # a day before the birthday
    assert other.age == pytest.approx(11 / 12)
    assert frontal.findings == "Has clear lungs. The heart is normal."
    reasons = left_out(out)
    assert set(reasons) == {"lat.dcm", "ct.dcm", "foot.dcm", "none.dcm", "notes.pdf", "x.dcm"}
    assert reasons["lat.dcm"].startswith("the same SOPInstanceUID as")  # copy.dcm comes first
    assert "modality CT" in reasons["ct.dcm"]
    assert "body part FOOT" in reasons["foot.dcm"]
    assert "no StudyInstanceUID" in reasons["none.dcm"]
    assert reasons["notes.pdf"] == "not a DICOM file"
    assert "1 images state no known view" in caplog.text


def test_private_data_stay_behind(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    out = tmp_path / "m.jsonl"
    dicom.prepare(export(tmp_path / "export"), out)
    written = out.read_text()
    for private in ("MRN-778", "Miller", "Ada", "ACC1", "1.2.1", "1950", "2020"):
        assert private not in written
    plain = {row.subject for row in Manifest.read(out).rows}
    salted = {row.subject for row in dicom.prepare(tmp_path / "export", out, salt="secret").rows}
    assert not plain & salted
    (tmp_path / "export/a").rename(tmp_path / "export/miller_ada")
    with caplog.at_level(logging.WARNING):
        dicom.prepare(tmp_path / "export", out)
    assert "2 images have the patient's name or id in their path" in caplog.text


@pytest.mark.parametrize("kind", ["folder", "table"])
def test_reports_beside_the_images(tmp_path: Path, kind: str) -> None:
    reports = tmp_path / "export/reports"
    export(tmp_path / "export")
    if kind == "folder":
        reports.mkdir()
        (reports / "ACC2.txt").write_text("IMPRESSION: Small effusion.")
        (reports / "pa.txt").write_text("CONCLUSION: Normal chest.")
        (reports / "ACC7.txt").write_text("Whose?")
    else:
        reports = tmp_path / "reports.csv"
        reports.write_text(
            "Accession,Findings,Impression\nACC2,,Small effusion.\nACC1,,Normal chest.\nACC7,Whose is it?,\n"
        )
    out = tmp_path / "m.parquet"
    made = CliRunner().invoke(
        app, ["prepare", "dicom", str(tmp_path / "export"), "--reports", str(reports), "--out", str(out)]
    )
    assert made.exit_code == 0, made.output
    texts = {row.view: (row.findings, row.impression) for row in Manifest.read(out).rows}
    assert texts["frontal"] == texts["lateral"] == ("Has clear lungs. The heart is normal.", "Normal chest.")
    assert texts[None] == ("", "Small effusion.")
    assert "report of no study in the folder" in left_out(out).values()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        dicom.prepare(tmp_path / "none", tmp_path / "m.jsonl")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/a.txt").write_text("text")
    with pytest.raises(DataError, match=r"none of its 1 files .*a\.txt: not a DICOM file"):
        dicom.prepare(tmp_path / "empty", tmp_path / "m.jsonl")
    export(tmp_path / "export")
    with pytest.raises(DataError, match="none of its 1 reports is of a study"):
        dicom.prepare(tmp_path / "export", tmp_path / "m.jsonl", reports=tmp_path / "empty")
    (tmp_path / "t.csv").write_text("when,what\n1,2\n")
    with pytest.raises(DataError, match="expected one of studies or files"):
        dicom.prepare(tmp_path / "export", tmp_path / "m.jsonl", reports=tmp_path / "t.csv")
    told = ["prepare", "openi", str(tmp_path), "--out", str(tmp_path / "m.jsonl"), "--salt", "x"]
    assert isinstance(CliRunner().invoke(app, told).exception, InputError)
