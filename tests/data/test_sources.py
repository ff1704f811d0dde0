"""Public data sets in the layouts that they come in, made small here, and the real ones where they are."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from xgem.cli.data import app
from xgem.data.manifest import Manifest
from xgem.data.sources import nih, openi
from xgem.types import DataError, ManifestError, OutputError

REPORTS = """uid,MeSH,Problems,image,indication,comparison,findings,impression
1,normal,normal,Xray Chest PA and Lateral,,,The lungs are clear.,Normal chest x-XXXX.
2,x,"Cardiomegaly;Pulmonary Disease, Chronic Obstructive;No Indexing;Cardiomegaly",,,,The heart is large..,
3,x,Technical Quality of Image Unsatisfactory ,,,,,
4,x,Lymph nodes,,,,,1. Node.
"""
XML = """<?xml version="1.0" encoding="utf-8"?>
<eCitation><uId id="CXR{uid}"/><MedlineCitation><Article><Abstract>
<AbstractText Label="COMPARISON">None.</AbstractText>
<AbstractText Label="FINDINGS">{findings}</AbstractText>
<AbstractText Label="IMPRESSION">{impression}</AbstractText>
</Abstract></Article></MedlineCitation>
<MeSH><major>{mesh}</major><major>No Indexing</major></MeSH>
{images}
</eCitation>"""
IMAGE = '<parentImage id="{id}"><figureId>F1</figureId><caption>{caption}</caption></parentImage>'


def picture(path: Path, chest) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(chest(40, 40)).save(path)


@pytest.fixture
def csvs(tmp_path: Path, chest) -> Path:
    """images.csv + reports.csv."""
    source = tmp_path / "openi"
    for name in ("1_f.png", "1_l.png", "2_f.png", "5_f.png"):
        picture(source / "images" / name, chest)
    (source / "images.csv").write_text(
        "uid,view,file,split\n1,frontal,1_f.png,val\n1,lateral,1_l.png,val\n2,frontal,2_f.png,train\n5,frontal,5_f.png,train\n"
    )
    (source / "reports.csv").write_text(REPORTS)
    return source


def xml_layout(source: Path, chest, *, projections: bool) -> Path:
    reports = source / "ecgen-radiology"
    reports.mkdir(parents=True)
    studies = {
        "1": (
            "Lungs clear.",
            "Normal..",
            "normal",
            [
                ("CXR1_1_IM-0001-3001", "Xray Chest PA and Lateral"),
                ("CXR1_1_IM-0001-4001", "Xray Chest PA and Lateral"),
            ],
        ),
        "2": ("", "1. Big heart.", "Cardiomegaly/mild", [("CXR2_IM-0652-1001", "Chest portable AP")]),
        "3": ("", "Effusion.", "Pleural Effusion", [("CXR3_IM-1-1", "Lateral view")]),
    }
    for uid, (findings, impression, mesh, images) in studies.items():
        nodes = "".join(IMAGE.format(id=name, caption=caption) for name, caption in images)
        text = XML.format(uid=uid, findings=findings, impression=impression, mesh=mesh, images=nodes)
        (reports / f"{uid}.xml").write_text(text)
        for name, _ in images:
            picture(source / "NLMCXR_png" / f"{name}.png", chest)
    if projections:
        (source / "indiana_projections.csv").write_text(
            "uid,filename,projection\n1,1_IM-0001-4001.dcm.png,Frontal\n1,1_IM-0001-3001.dcm.png,Lateral\n"
        )
    return source


def test_openi_from_csvs(csvs: Path, tmp_path: Path):
    made = openi.prepare(csvs, tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet") == made
    studies = {study.id: study for study in made.studies()}
    assert sorted(studies) == ["openi-1", "openi-2", "openi-4", "openi-5"]
    one, two, four, five = (studies[f"openi-{uid}"] for uid in (1, 2, 4, 5))
    assert one.split == "val"
    assert one.subject == one.id
    assert {view: len(files) for view, files in one.pictures.items()} == {"frontal": 1, "lateral": 1}
    assert one.pictures["lateral"][0] == csvs / "images/1_l.png"
    assert (one.findings, one.impression, one.labels) == ("The lungs are clear.", "Normal chest x-ray.", ("normal",))
    assert two.labels == ("Cardiomegaly", "Pulmonary Disease, Chronic Obstructive")
    assert (two.findings, two.impression) == ("The heart is large.", "")
    assert four.pictures == {}
    assert (four.impression, four.labels) == ("Node.", ("Lymph Nodes",))
    assert (five.findings, five.impression, five.labels) == ("", "", ())
    assert {row.licence for row in made.rows} == {openi.LICENCE}


def test_nothing_is_copied_and_files_are_relative_below_the_manifest(csvs: Path, tmp_path: Path):
    before = sorted(path for path in tmp_path.rglob("*"))
    made = openi.prepare(csvs, tmp_path / "m.jsonl")
    assert sorted(path for path in tmp_path.rglob("*")) == sorted([*before, tmp_path / "m.jsonl"])
    assert made.rows[0].file == "openi/images/1_f.png"


def test_openi_from_the_indiana_csvs(csvs: Path, tmp_path: Path):
    (csvs / "images.csv").unlink()
    (csvs / "reports.csv").rename(csvs / "indiana_reports.csv")
    (csvs / "indiana_projections.csv").write_text("uid,filename,projection\n1,1_f.png,Frontal\n1,1_l.png,Lateral\n")
    made = openi.prepare(csvs, tmp_path / "m.jsonl")
    assert set(made.studies()[0].pictures) == {"frontal", "lateral"}
    assert made.studies()[0].split == openi.split_of("openi-1")


def test_openi_from_xml_with_projections(tmp_path: Path, chest):
    source = xml_layout(tmp_path / "raw", chest, projections=True)
    studies = {study.id: study for study in openi.prepare(source, tmp_path / "m.jsonl").studies()}
    assert studies["openi-1"].pictures["frontal"][0].stem == "CXR1_1_IM-0001-4001"
    assert studies["openi-1"].pictures["lateral"][0].stem == "CXR1_1_IM-0001-3001"
    assert (studies["openi-1"].impression, studies["openi-1"].labels) == ("Normal.", ("normal",))
    assert (studies["openi-2"].impression, studies["openi-2"].labels) == ("Big heart.", ("Cardiomegaly",))
    assert list(studies["openi-2"].pictures) == ["frontal"]
    assert list(studies["openi-3"].pictures) == ["lateral"]


def test_openi_from_xml_alone_keeps_undecided_pictures_unused(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture):
    source = xml_layout(tmp_path / "raw", chest, projections=False)
    with caplog.at_level(logging.WARNING):
        made = openi.prepare(source, tmp_path / "m.parquet")
    assert "2 of 4 pictures" in caplog.text
    assert [row.view for row in made.rows] == [None, None, "frontal", "lateral"]
    assert made.studies()[0].pictures == {}
    assert Manifest.read(tmp_path / "m.parquet") == made


def test_openi_refusals(csvs: Path, tmp_path: Path, chest):
    with pytest.raises(DataError, match="no such folder"):
        openi.prepare(tmp_path / "none", tmp_path / "m.jsonl")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="not an Open-i folder"):
        openi.prepare(tmp_path / "empty", tmp_path / "m.jsonl")
    (csvs / "images/1_l.png").rename(csvs / "moved.png")
    with pytest.raises(DataError, match=r"1_l\.png of study 1"):
        openi.prepare(csvs, tmp_path / "m.jsonl")
    (csvs / "moved.png").rename(csvs / "images/1_l.png")
    table = (csvs / "images.csv").read_text()
    (csvs / "images.csv").write_text(table.replace("1,lateral,1_l.png,val", "1,lateral,1_l.png,train"))
    with pytest.raises(DataError, match="in splits"):
        openi.prepare(csvs, tmp_path / "m.jsonl")
    (csvs / "images.csv").write_text(table.replace("uid,view", "id,view"))
    with pytest.raises(DataError, match="column 'uid'"):
        openi.prepare(csvs, tmp_path / "m.jsonl")
    (csvs / "images.csv").write_text(table.replace("1,lateral", "1,oblique"))
    with pytest.raises(DataError, match="oblique"):
        openi.prepare(csvs, tmp_path / "m.jsonl")
    broken = xml_layout(tmp_path / "raw", chest, projections=False)
    (broken / "ecgen-radiology/1.xml").write_text("<eCitation>")
    with pytest.raises(DataError, match=r"1\.xml"):
        openi.prepare(broken, tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()


def nih_original(source: Path, chest) -> Path:
    for name in ("00000001_000.png", "00000001_001.png", "00000002_000.png"):
        picture(source / "images_001/images" / name, chest)
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


@pytest.mark.parametrize(
    ("text", "years"), [("61", 61), ("061Y", 61), ("006M", 0.5), ("414", None), ("", None), ("old", None)]
)
def test_nih_ages(text: str, years: float | None):
    assert nih._years(text) == years


def test_command_line(csvs: Path, tmp_path: Path):
    runner, out = CliRunner(), tmp_path / "m.parquet"
    made = runner.invoke(app, ["prepare", "openi", str(csvs), "--out", str(out), "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["pictures"] == {"train/frontal": 2, "val/frontal": 1, "val/lateral": 1}
    checked = runner.invoke(app, ["check", str(out), "--pictures"])
    assert checked.exit_code == 0, checked.output
    assert "val/lateral 1" in checked.output
    again = runner.invoke(app, ["prepare", "openi", str(csvs), "--out", str(out)])
    assert isinstance(again.exception, OutputError)
    assert runner.invoke(app, ["prepare", "openi", str(csvs), "--out", str(out), "--overwrite"]).exit_code == 0
    (csvs / "images/1_l.png").unlink()
    failed = runner.invoke(app, ["check", str(out)])
    assert failed.exit_code != 0
    assert isinstance(failed.exception, ManifestError)
    assert runner.invoke(app, ["check", str(out), "--no-files"]).exit_code == 0
    assert runner.invoke(app, ["prepare", "chexpert", str(csvs), "--out", str(out)]).exit_code == 2


@pytest.mark.data
def test_real_openi(data_dir: Path, tmp_path: Path):
    made = openi.prepare(data_dir / "openi", tmp_path / "m.parquet")
    made.check()
    pictures = Counter(row.view for row in made.rows if row.file)
    assert pictures == {"frontal": 3410, "lateral": 3267}
    studies = made.studies()
    assert sum({"frontal", "lateral"} <= set(study.pictures) for study in studies) == 3033
    assert not {study.subject for study in studies if study.split == "train"} & {
        study.subject for study in studies if study.split == "val"
    }
    assert not any("XXXX" in study.impression + study.findings for study in studies)
    assert not any("No Indexing" in study.labels for study in studies)


@pytest.mark.data
def test_real_nih(data_dir: Path, tmp_path: Path):
    made = nih.prepare(data_dir / "nih", tmp_path / "m.jsonl")
    made.check()
    assert len(made.rows) == 1705
    assert {row.view for row in made.rows} == {"frontal"}
    assert Counter(row.split for row in made.rows)["train"] > 1200
