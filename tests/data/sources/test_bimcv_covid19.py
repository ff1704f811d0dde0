"""BIMCV-COVID19, made up."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.data.sources.conftest import image
from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.sources import bimcv_covid19
from xgem.labels.vocabulary import annotated_labels
from xgem.types import DataError

LABELS = """"['pneumonia' \t 'unchanged' \t 'COVID 19']\""""
HEAD = "PatientID\tReportID\tReport\tLabels\n"


def name(subject: str, session: str, rest: str) -> str:
    return f"sub-{subject}/ses-{session}/mod-rx/sub-{subject}_ses-{session}_{rest}"


def release(source: Path, chest, labels: str = LABELS) -> Path:
    for one in (
        name("S1", "E1", "run-1_bp-chest_vp-ap_cr.png"),
        name("S1", "E1", "acq-2_run-1_bp-chest_vp-pa_cr.png"),
        name("S2", "E2", "run-1_bp-chest_vp-ll_dx.png"),
        name("S2", "E3", "run-1_bp-chest_dx-corrected.png"),
        name("S2", "E3", "run-1_bp-hand_vp-ap_dx.png"),
        name("S2", "E3", "run-1_bp-chest_ct.png"),
    ):
        image(source / one, chest)

    def header(one: str, **values: Any) -> None:
        elements = {tag.removeprefix("x"): {"vr": "CS", "Value": [value]} for tag, value in values.items()}
        (source / one).write_text(json.dumps({**elements, "00080008": {"vr": "CS"}}))

    header(name("S1", "E1", "run-1_bp-chest_vp-ap_cr.json"), x00280004="MONOCHROME1", x00101010="071Y", x00100040="F")
    header(name("S1", "E1", "acq-2_run-1_bp-chest_vp-pa_cr.json"), x0008103E="TÓRAX LAT.", x00280004="MONOCHROME2")
    derivatives = source / "derivatives/labels"
    derivatives.mkdir(parents=True)
    (derivatives / "labels_covid19_posi.tsv").write_text(
        f"{HEAD}sub-S1\tses-E1\topacidad basal izquierda .\t{labels}\n"
        "sub-S2\tses-E2\t\"['sin cambios', 'derrame izquierdo .']\"\t\"['normal']\"\n"
        "sub-S9\tses-E9\tx\t\"['normal']\"\n"
    )
    (source / "participants.tsv").write_text(
        "participant\tmodality_dicom\tage\tgender\nsub-S2\t\"['CR', 'DX']\"\t\"['50', '51', '999']\"\tNone\n"
    )
    return source


def test_sessions_are_studies(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = bimcv_covid19.prepare(release(tmp_path / "b", chest), tmp_path / "m.parquet")
    assert "1 images are of other body parts" in caplog.text
    assert "1 of 3 sessions have no labels" in caplog.text
    rows = {Path(row.file or "").stem.partition("_ses-")[2]: row for row in made.rows}
    front, side = rows["E1_run-1_bp-chest_vp-ap_cr"], rows["E1_acq-2_run-1_bp-chest_vp-pa_cr"]
    # The first image of the session is the lateral one; its negative is a study of its own
    assert (side.view, side.study, side.reading) == ("lateral", "bimcv-covid19-ses-E1", AS_STATED)
    assert (front.view, front.study) == ("frontal", "bimcv-covid19-ses-E1-monochrome")
    assert front.reading == ReadOptions(invert=True)
    assert front.labels == side.labels == ("pneumonia", "COVID 19")
    assert (front.impression, front.findings) == ("Opacidad basal izquierda.", "")
    labels = annotated_labels(front.labels, front.source)
    assert (labels["Pneumonia"], labels["No Finding"], labels["Pneumothorax"]) == (1, 0, 0)
    lateral, unlisted = rows["E2_run-1_bp-chest_vp-ll_dx"], rows["E3_run-1_bp-chest_dx-corrected"]
    assert (lateral.view, lateral.labels, lateral.age, lateral.sex) == ("lateral", ("normal",), 50.5, None)
    assert lateral.impression == "Sin cambios derrame izquierdo."
    assert (unlisted.view, unlisted.labels, unlisted.impression) == (None, (), "")
    assert lateral.split == unlisted.split


def test_the_first_header_of_a_session_tells_age_and_sex(tmp_path: Path, chest) -> None:
    source = release(tmp_path / "b", chest)
    for path in (source / "sub-S1").rglob("*acq-2*"):
        path.unlink()
    row = bimcv_covid19.prepare(source, tmp_path / "m.jsonl").rows[0]
    assert (row.study, row.age, row.sex) == ("bimcv-covid19-ses-E1", 71, "F")


def test_refusals(tmp_path: Path, chest) -> None:
    with pytest.raises(DataError, match=r"not a BIMCV-COVID19 folder; expected one of labels_covid19_posi\.tsv"):
        bimcv_covid19.prepare(tmp_path, tmp_path / "m.jsonl")
    with pytest.raises(DataError, match="ses-E1: Labels is 'normal'; expected a list"):
        bimcv_covid19.prepare(release(tmp_path / "b", chest, "normal"), tmp_path / "m.jsonl")
    table = tmp_path / "c/labels_covid_posi.tsv"
    table.parent.mkdir()
    table.write_text(HEAD)
    with pytest.raises(DataError, match="has no radiograph such as"):
        bimcv_covid19.prepare(table.parent, tmp_path / "m.jsonl")
    radiograph = table.parent / name("S1", "E1", "run-1_bp-chest_vp-ap_cr.png")
    image(radiograph, chest)
    table.write_text("ReportID\tFindings\n")
    with pytest.raises(DataError, match="column 'Labels' is missing"):
        bimcv_covid19.prepare(table.parent, tmp_path / "m.jsonl")
    for text in ("[1]", "{"):
        radiograph.with_suffix(".json").write_text(text)
        with pytest.raises(DataError, match=r"vp-ap_cr\.json: no DICOM header in JSON"):
            bimcv_covid19.prepare(table.parent, tmp_path / "m.jsonl")
