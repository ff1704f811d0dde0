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
from xgem.data.annotations import Box
from xgem.data.manifest import Manifest, merge, split_of
from xgem.data.sources import nih, openi, segmentations, severity
from xgem.data.sources.cases import case_of
from xgem.data.sources.tables import read_table, years_of
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


def image(path: Path, chest) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(chest(40, 40)).save(path)


@pytest.fixture
def csvs(tmp_path: Path, chest) -> Path:
    """images.csv + reports.csv."""
    source = tmp_path / "openi"
    for name in ("1_f.png", "1_l.png", "2_f.png", "5_f.png"):
        image(source / "images" / name, chest)
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


def nih_original(source: Path, chest) -> Path:
    for name in ("00000001_000.png", "00000001_001.png", "00000002_000.png"):
        image(source / "images_001/images" / name, chest)
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
def test_ages(text: str, years: float | None):
    assert years_of(text) == years


def nih_listed(source: Path, chest, boxes: str) -> Path:
    """labels.csv + boxes.csv."""
    for name in ("a.png", "b.png"):
        image(source / "images" / name, chest)
    (source / "labels.csv").write_text(
        "file,patient_id,age,sex,view,labels\na.png,1,61,F,PA,Mass\nb.png,2,62,M,AP,No Finding\n"
    )
    (source / "boxes.csv").write_text("file,label,x,y,w,h\n" + boxes)
    return source


def test_nih_boxes(tmp_path: Path, chest):
    source = nih_listed(tmp_path / "nih", chest, "a.png,Mass,0.1,0.2,0.3,0.4\na.png,Infiltrate,0.5,0.5,0.5,0.25\n")
    made = nih.prepare(source, tmp_path / "m.parquet")
    assert made.rows[0].boxes == (Box("mass", 0.1, 0.2, 0.3, 0.4), Box("infiltrate", 0.5, 0.5, 0.5, 0.25))
    assert made.rows[1].boxes == ()
    assert Manifest.read(tmp_path / "m.parquet") == made
    (source / "boxes.csv").unlink()
    assert nih.prepare(source, tmp_path / "m.parquet").rows[0] == made.rows[0].model_copy(update={"boxes": ()})


def test_nih_boxes_of_the_original_are_pixels_of_1024(tmp_path: Path, chest):
    source = nih_original(tmp_path / "nih", chest)
    (source / "BBox_List_2017.csv").write_text(
        "Image Index,Finding Label,Bbox [x,y,w,h],,,\n"
        "00000001_000.png,Cardiomegaly,256,512,128.0,64,,,\n"
        "00000003_000.png,Mass,1,2,3,4,,,\n"
        "00000009_000.png,Mass,1,2,3,4,,,\n"
    )
    made = nih.prepare(source, tmp_path / "m.jsonl")
    assert [row.boxes for row in made.rows] == [(Box("cardiomegaly", 0.25, 0.5, 0.125, 0.0625),), (), ()]


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        ("c.png,Mass,0.1,0.2,0.3,0.4", r"boxes\.csv: a box of c\.png, which labels\.csv does not list"),
        ("a.png,,0.1,0.2,0.3,0.4", r"image a\.png: .*box of class ''"),
        ("a.png,Mass,100,200,300,400", r"image a\.png: .*fractions of its width and height"),
        ("a.png,Mass,left,0.2,0.3,0.4", r"a box of a\.png is 'left'; expected a number"),
        ("a.png,Mass,0.1,0.2", r"a box of a\.png is ''; expected a number"),
    ],
)
def test_nih_refuses_boxes(tmp_path: Path, chest, boxes: str, words: str):
    with pytest.raises(DataError, match=words):
        nih.prepare(nih_listed(tmp_path / "nih", chest, boxes + "\n"), tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()


MASKS = """image,mask,structure,view,finding,sex,age,image_licence,image_url
case-2-day1.png,m0.png,Left Lung,PA,"COVID-19, ARDS",M,40,CC BY,
case-2-day1.png,m1.png,Central Venous Line,PA,"COVID-19, ARDS",M,40,CC BY,
case-2-day1.png,m2.png,Nosogastric Tube,PA,"COVID-19, ARDS",M,40,CC BY,
case-2-day1.png,m3.png,Ground Glass Opacities,PA,"COVID-19, ARDS",M,40,CC BY,
case-2-day9.png,m4.png,Right Lung,AP,,,,,
"""


@pytest.fixture
def masks(tmp_path: Path, chest) -> Path:
    """masks.csv + images/ + masks/."""
    source = tmp_path / "masks"
    for name in ("case-2-day1.png", "case-2-day9.png", "unlisted.png"):
        image(source / "images" / name, chest)
    (source / "masks").mkdir()
    for number in range(5):
        Image.new("1", (40, 40), number % 2).save(source / "masks" / f"m{number}.png")
    (source / "masks.csv").write_text(MASKS)
    return source


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
    Image.new("1", (40, 39)).save(masks / "masks/m1.png")
    with pytest.raises(DataError, match=r"m1\.png: a mask of \(40, 39\) pixels for an image of \(40, 40\)"):
        segmentations.prepare(masks, tmp_path / "m.jsonl")
    (masks / "masks/m1.png").write_bytes(b"no PNG")
    with pytest.raises(DataError, match=r"m1\.png: not a readable image"):
        segmentations.prepare(masks, tmp_path / "m.jsonl")
    with pytest.raises(DataError, match="not a folder of masks"):
        segmentations.prepare(tmp_path / "none", tmp_path / "m.jsonl")


BRIXIA = "\ufefffilename,S-A,S-Global,J-Global\na.v1.jpeg,3,18,17\nb.jpg,0,0,0\ngone.jpg,1,2,3\n"


@pytest.fixture
def brixia(tmp_path: Path, chest) -> Path:
    """brixia.csv with a byte order mark + images/, of other endings."""
    source = tmp_path / "severity"
    for name in ("a.v1.png", "b.png"):
        image(source / "images" / name, chest)
    (source / "brixia.csv").write_text(BRIXIA, encoding="utf-8")
    return source


def test_severity(brixia: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING):
        made = severity.prepare(brixia, tmp_path / "m.parquet")
    assert [record.getMessage() for record in caplog.records] == [
        "severity: 1 of 3 scored images are missing and are left out"
    ]
    assert Manifest.read(tmp_path / "m.parquet") == made
    assert [(row.study, row.file, row.severity) for row in made.rows] == [
        ("severity-a.v1", "severity/images/a.v1.png", 17.5),
        ("severity-b", "severity/images/b.png", 0),
    ]
    assert [row.split for row in made.rows] == [split_of(row.subject, val=0.2, test=0) for row in made.rows]
    assert made.studies()[0].severity == 17.5


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("18,17", "19,17", r"a\.v1\.jpeg has scores \[19\.0, 17\.0\]; expected 0 to 18"),
        ("18,17", "nan,17", "expected 0 to 18"),
        ("18,17", ",17", r"S-Global of a\.v1\.jpeg is ''; expected a number"),
        ("J-Global", "J", "column 'J-Global'"),
        (BRIXIA[BRIXIA.index("a.v1") :], "gone.jpg,1,2,3\n", "none of its 1 images is in"),
    ],
)
def test_severity_refusals(brixia: Path, tmp_path: Path, old: str, new: str, words: str):
    (brixia / "brixia.csv").write_text(BRIXIA.replace(old, new), encoding="utf-8")
    with pytest.raises(DataError, match=words):
        severity.prepare(brixia, tmp_path / "m.jsonl")
    assert not (tmp_path / "m.jsonl").exists()
    with pytest.raises(DataError, match="not a folder of Brixia scores"):
        severity.prepare(tmp_path / "none", tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("stems", "case"),
    [
        (("pneumonia-23-day1", "pneumonia-23-day-12-PA", "pneumonia-23-prior", "pneumonia-23"), "pneumonia-23"),
        (("progressive-12-hours", "progressive-3-days", "progressive-on-admission"), "progressive"),
        (("caso-70-1-PA", "caso-70-2-APS"), "caso-70"),
        (("16654_1_1", "16654_4_1"), "16654"),
        (("SARS-10.1148-g04mr34-Fig8a-day0", "SARS-10.1148-g07a-Fig7a"), "SARS-10.1148"),
        (("radiol.2020.fig3b", "radiol.2020.fig6b"), "radiol.2020"),
        (("trial_f1-PA", "trial_f3"), "trial"),
        (("s41_Fig1_HTML.webp-day5", "s41_Fig1_HTML.webp-day10"), "s41"),
        (("paper.pdf-001-a", "paper.pdf-001-b"), "paper"),
        (("case2a", "case2b"), "case2"),
        (("auntminnie-a-1", "auntminnie-b-1"), "auntminnie"),
        (("F2DE909F-E19C-4900-92F5-8F435B031AC6",), "31BA3780-2323-493F-8AED-62081B9C383B"),
        (("7EF28E12-F628-4BEC-A8C5-E6277C2E4F60",), "7EF28E12-F628-4BEC-A8C5-E6277C2E4F60"),
        (("pneumonia-1",), "pneumonia-1"),
        ((".pdf",), ".pdf"),
    ],
)
def test_images_of_a_case_share_a_subject(stems: tuple[str, ...], case: str):
    assert {case_of(stem) for stem in stems} == {f"covid-cxr-{case}"}


def test_command_line(csvs: Path, tmp_path: Path):
    runner, out = CliRunner(), tmp_path / "m.parquet"
    made = runner.invoke(app, ["prepare", "openi", str(csvs), "--out", str(out), "--json"])
    assert made.exit_code == 0, made.output
    assert json.loads(made.stdout)["images"] == {"train/frontal": 2, "val/frontal": 1, "val/lateral": 1}
    checked = runner.invoke(app, ["check", str(out), "--images"])
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


def test_command_line_merges(csvs: Path, brixia: Path, masks: Path, tmp_path: Path):
    runner, out = CliRunner(), tmp_path / "merged/m.parquet"
    sources = {"openi": csvs, "severity": brixia, "segmentations": masks}
    parts = [str(tmp_path / f"{name}.jsonl") for name in sources]
    for (name, folder), part in zip(sources.items(), parts, strict=True):
        assert runner.invoke(app, ["prepare", name, str(folder), "--out", part]).exit_code == 0
    merged = runner.invoke(app, ["merge", *parts, "--out", str(out)])
    assert merged.exit_code == 0, merged.output
    assert "device 2" in merged.output
    read = Manifest.read(out)
    read.check()
    assert {row.source for row in read.rows} == set(sources)
    assert [len(read.rows), len(read.studies())] == [9, 8]
    assert isinstance(runner.invoke(app, ["merge", *parts, "--out", str(out)]).exception, OutputError)
    again = runner.invoke(app, ["merge", *parts, "--out", str(out), "--overwrite", "--json"])
    assert json.loads(again.stdout)["severity"] == 2
    twice = runner.invoke(app, ["merge", parts[0], parts[0], "--out", str(out), "--overwrite"])
    assert isinstance(twice.exception, ManifestError)
    assert "study 'openi-1' is in manifests 1 and 2" in str(twice.exception)


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


@pytest.mark.data
def test_real_nih(data_dir: Path, tmp_path: Path):
    made = nih.prepare(data_dir / "nih", tmp_path / "m.jsonl")
    made.check()
    assert len(made.rows) == 1705
    assert {row.view for row in made.rows} == {"frontal"}
    assert Counter(row.split for row in made.rows)["train"] > 1200
    assert sum(len(row.boxes) for row in made.rows) == 60
    assert sum(bool(row.boxes) for row in made.rows) == 55


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
    for record in read_table(data_dir / "segmentations/masks.csv", "image", "image_url"):
        pages.setdefault(record["image_url"], set()).add(case_of(Path(record["image"]).stem))
    assert [page for page, subjects in pages.items() if len(subjects) > 1] == []
    assert 10 <= sum(row.split == "val" for row in made.rows) <= 30


@pytest.mark.data
def test_real_severity(data_dir: Path, tmp_path: Path):
    made = severity.prepare(data_dir / "severity", tmp_path / "m.parquet")
    made.check()
    scores = [row.severity for row in made.rows if row.severity is not None]
    assert len(scores) == len(made.rows) == 183
    assert (min(scores), max(scores)) == (0, 17.5)
    assert 20 <= sum(row.split == "val" for row in made.rows) <= 55
    # Images that both sets hold are in one split of both.
    merge([made, segmentations.prepare(data_dir / "segmentations", tmp_path / "s.parquet")], tmp_path).check()
