"""Open-i in its three layouts, made small, and the real one where it is."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.data.sources.conftest import image
from xgem.cli.data import app
from xgem.data.manifest import Manifest, split_of
from xgem.data.sources import openi
from xgem.types import DataError, InputError

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
            image(source / "NLMCXR_png" / f"{name}.png", chest)
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
    assert {view: len(files) for view, files in one.images.items()} == {"frontal": 1, "lateral": 1}
    assert one.images["lateral"][0] == csvs / "images/1_l.png"
    assert (one.findings, one.impression, one.labels) == ("The lungs are clear.", "Normal chest x-ray.", ("normal",))
    assert two.labels == ("Cardiomegaly", "Pulmonary Disease, Chronic Obstructive")
    assert (two.findings, two.impression) == ("The heart is large.", "")
    assert four.images == {}
    assert (four.impression, four.labels) == ("Node.", ("Lymph Nodes",))
    assert (five.findings, five.impression, five.labels) == ("", "", ())
    assert {row.licence for row in made.rows} == {openi.LICENCE}
    assert (one.qualified, four.qualified, five.qualified) == ((), ("Lymph nodes/hilum/left",), ())
    assert two.qualified == ("Cardiomegaly/mild", "Pulmonary Disease, Chronic Obstructive")


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
    assert set(made.studies()[0].images) == {"frontal", "lateral"}
    assert made.studies()[0].split == split_of("openi-1")


def test_openi_from_xml_with_projections(tmp_path: Path, chest):
    source = xml_layout(tmp_path / "raw", chest, projections=True)
    studies = {study.id: study for study in openi.prepare(source, tmp_path / "m.jsonl").studies()}
    assert studies["openi-1"].images["frontal"][0].stem == "CXR1_1_IM-0001-4001"
    assert studies["openi-1"].images["lateral"][0].stem == "CXR1_1_IM-0001-3001"
    assert (studies["openi-1"].impression, studies["openi-1"].labels) == ("Normal.", ("normal",))
    assert (studies["openi-2"].impression, studies["openi-2"].labels) == ("Big heart.", ("Cardiomegaly",))
    assert (studies["openi-1"].qualified, studies["openi-2"].qualified) == ((), ("Cardiomegaly/mild",))
    assert list(studies["openi-2"].images) == ["frontal"]
    assert list(studies["openi-3"].images) == ["lateral"]


def test_openi_from_xml_alone_keeps_undecided_images_unused(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture):
    source = xml_layout(tmp_path / "raw", chest, projections=False)
    with caplog.at_level(logging.WARNING):
        made = openi.prepare(source, tmp_path / "m.parquet")
    assert "2 of 4 images" in caplog.text
    assert [row.view for row in made.rows] == [None, None, "frontal", "lateral"]
    assert made.studies()[0].images == {}
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


@pytest.mark.data
def test_real_openi(data_dir: Path, tmp_path: Path):
    made = openi.prepare(data_dir / "openi", tmp_path / "m.parquet")
    made.check()
    image_files = Counter(row.view for row in made.rows if row.file)
    assert image_files == {"frontal": 3410, "lateral": 3267}
    studies = made.studies()
    assert sum({"frontal", "lateral"} <= set(study.images) for study in studies) == 3033
    assert not {study.subject for study in studies if study.split == "train"} & {
        study.subject for study in studies if study.split == "val"
    }
    assert not any("XXXX" in study.impression + study.findings for study in studies)
    assert not any("No Indexing" in study.labels for study in studies)
    assert sum(len(study.qualified) for study in studies) > 5000
    assert not any(study.qualified for study in studies if "normal" in study.labels)


EXTRA = """uid,file,age,dicom_view,row_direction,source_width,source_height,pixel_mm,position,r2gen_split
1,1_f.png,23,PA,L,400,500,0.15,,test
1,1_l.png,23,LL,A,400,400,0.15,,test
2,2_f.png,90,AP,L,500,400,0.15,,train
"""


@pytest.fixture
def extra(tmp_path: Path) -> Path:
    (tmp_path / "extra").mkdir()
    (tmp_path / "extra/images.csv").write_text(EXTRA)
    return tmp_path / "extra"


def test_openi_with_ages_and_true_shapes(csvs: Path, extra: Path, tmp_path: Path):
    made = openi.prepare(csvs, tmp_path / "m.parquet", extra=extra)
    assert Manifest.read(tmp_path / "m.parquet") == made
    shapes = {Path(row.file).name: row.reading.pixel_aspect for row in made.rows if row.file}
    assert shapes == {"1_f.png": 1.25, "1_l.png": None, "2_f.png": 0.8, "5_f.png": None}
    assert {study.id: study.age for study in made.studies()} == {
        "openi-1": 23,
        "openi-2": 90,
        "openi-4": None,
        "openi-5": None,
    }
    plain = openi.prepare(csvs, tmp_path / "p.parquet")
    assert all(row.age is None and row.reading.pixel_aspect is None for row in plain.rows)
    assert [row.split for row in plain.rows] == [row.split for row in made.rows]


def test_openi_with_the_split_of_r2gen(csvs: Path, extra: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        made = openi.prepare(csvs, tmp_path / "m.parquet", extra=extra, r2gen_split=True)
    assert {study.id: study.split for study in made.studies()} == {"openi-1": "test", "openi-2": "train"}
    assert "2 studies are in none of R2Gen's splits" in caplog.text
    with pytest.raises(DataError, match="r2gen_split without extra"):
        openi.prepare(csvs, tmp_path / "x.parquet", r2gen_split=True)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("1,1_l.png,23", "1,1_l.png,24", "age 24, but 23 in another row of study 1"),
        ("A,400,400,0.15,,test", "A,400,400,0.15,,train", "two values of r2gen_split in study 1"),
        (",train\n", ",dev\n", "r2gen_split 'dev'; expected train, val, test or nothing"),
        ("500,400", "0,400", "source of 0 x 400 pixels; expected 1 or more"),
        ("500,400", "wide,400", "source_width is 'wide'; expected a number"),
        ("source_width", "width", "column 'source_width'"),
        (EXTRA[EXTRA.index("1,1_f") :], "9,9.png,1,,,1,1,,,\n", "lists none of the 4 images"),
    ],
)
def test_openi_refuses_tables_of_headers(csvs: Path, extra: Path, tmp_path: Path, old: str, new: str, words: str):
    (extra / "images.csv").write_text(EXTRA.replace(old, new, 1))
    with pytest.raises(DataError, match=words):
        openi.prepare(csvs, tmp_path / "m.parquet", extra=extra)
    (extra / "images.csv").unlink()
    with pytest.raises(DataError, match=r"has no images\.csv"):
        openi.prepare(csvs, tmp_path / "m.parquet", extra=extra)


def test_openi_headers_on_the_command_line(csvs: Path, extra: Path, tmp_path: Path):
    runner, out = CliRunner(), str(tmp_path / "m.parquet")
    result = runner.invoke(app, ["prepare", "openi", str(csvs), "--out", out, "--extra", str(extra), "--r2gen-split"])
    assert result.exit_code == 0, result.output
    assert {row.split for row in Manifest.read(out).rows} == {"test", "train"}
    wrong = runner.invoke(app, ["prepare", "nih", str(csvs), "--out", f"{out}.jsonl", "--extra", str(extra)])
    assert isinstance(wrong.exception, InputError)
    assert "extra: an option of openi" in str(wrong.exception)


@pytest.mark.data
def test_real_openi_with_headers(data_dir: Path, tmp_path: Path):
    made = openi.prepare(data_dir / "openi", tmp_path / "m.parquet", extra=data_dir / "openi_extra", r2gen_split=True)
    made.check(files=False)
    studies = made.studies()
    assert Counter(study.split for study in studies) == {"train": 1865, "test": 528, "val": 268}
    assert all(study.age is not None for study in studies)
    aspects = [row.reading.pixel_aspect or 1 for row in made.rows]
    assert sum(abs(aspect - 1) > 0.1 for aspect in aspects) > 0.5 * len(aspects)
    assert 0.6 < min(aspects) < max(aspects) < 1.8
