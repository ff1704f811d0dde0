"""Boxes with the patient's side and labels that radiologists agreed on: small, and the real ones where they are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.data.sources.conftest import image
from xgem.cli.data import app
from xgem.data.annotations import Box
from xgem.data.manifest import Manifest, split_of
from xgem.data.sources import nih, nih_boxes
from xgem.data.wordings import caption
from xgem.labels.vocabulary import annotated_labels
from xgem.types import DataError, InputError

STATING = "rsna_class,google_fracture,google_pneumothorax,google_airspace_opacity,google_nodule_or_mass"
LABELS = f"""file,patient_id,age,sex,view,labels,in_shared_nih,{STATING}
a.png,32,54,F,AP,Cardiomegaly|Edema|Infiltration,0,,,,,
b.png,72,67,M,PA,Pleural_Thickening|Pneumonia,0,No Lung Opacity / Not Normal,,,,
c.png,72,68,M,PA,No Finding,1,Lung Opacity,,,,
d.png,9,40,F,PA,Pneumothorax|Mass,0,,YES,NO,NO,YES
"""
BOXES = """file,label,x,y,w,h,source,side
a.png,Infiltrate,0.1,0.2,0.2,0.3,nih,right
a.png,Infiltrate,0.6,0.2,0.2,0.3,nih,left
a.png,Cardiomegaly,0.3,0.4,0.4,0.4,nih,both
c.png,Lung Opacity,0.1,0.2,0.2,0.3,rsna,right
"""
NIH = """file,patient_id,age,sex,view,labels
c.png,72,68,M,PA,No Finding
e.png,5,50,M,PA,Pneumonia
f.png,6,50,M,PA,Mass
"""
EXISTING = "file,label,x,y,w,h,source\ne.png,Lung Opacity,0.1,0.1,0.2,0.2,rsna\n"
STATED = f"file,{STATING}\nf.png,Normal,NO,,,\n"


@pytest.fixture
def boxed(tmp_path: Path, chest) -> Path:
    source = tmp_path / "boxed"
    for name in "abcd":
        image(source / f"images/{name}.png", chest)
    for name, text in {"labels": LABELS, "boxes": BOXES, "existing_boxes": EXISTING, "existing_labels": STATED}.items():
        (source / f"{name}.csv").write_text(text)
    return source


@pytest.fixture
def plain(tmp_path: Path, chest) -> Path:
    source = tmp_path / "nih"
    for name in "cef":
        image(source / f"images/{name}.png", chest)
    (source / "labels.csv").write_text(NIH)
    return source


def test_boxes_have_sides_and_radiologists_correct_labels(boxed: Path, tmp_path: Path) -> None:
    made = nih_boxes.prepare(boxed, tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet") == made
    a, b, c, d = made.studies()
    assert a.boxes == (
        Box("infiltrate", 0.1, 0.2, 0.2, 0.3),
        Box("infiltrate", 0.6, 0.2, 0.2, 0.3),
        Box("cardiomegaly", 0.3, 0.4, 0.4, 0.4),
    )
    assert a.qualified == ("Infiltrate/left/right", "Cardiomegaly")
    assert caption(a.qualified, a.labels, a.source) == "Bilateral infiltrates. Cardiomegaly."
    assert c.qualified == ("Opacity/lung/right",)
    assert caption(c.qualified, c.labels, c.source) == "Opacity in the right lung."
    assert a.labels == ("Cardiomegaly", "Edema", "Infiltration")
    assert b.labels == ("Pleural Thickening", "no Pneumonia")
    assert c.labels == ("Lung Opacity",)
    assert d.labels == ("Mass", "Fracture", "no Pneumothorax", "no Lung Opacity")
    known = annotated_labels(d.labels, d.source)
    assert [known[name] for name in ("Fracture", "Pneumothorax", "Lung Lesion")] == [1, 0, 1]
    assert annotated_labels(b.labels, b.source)["Pneumonia"] == 0
    assert [study.subject for study in (a, b, c)] == ["nih-32", "nih-72", "nih-72"]
    assert all(study.split == split_of(study.subject) for study in made.studies())
    assert [study.licence for study in (a, b)] == [nih.LICENCE, nih_boxes.LICENCE_RSNA]


def test_images_of_nih_join_with_what_is_known_of_them(boxed: Path, plain: Path, tmp_path: Path) -> None:
    args = ["prepare", "nih-boxes", str(boxed), "--nih", str(plain), "--out", str(tmp_path / "m.parquet")]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 0, result.output
    studies = {study.id: study for study in Manifest.read(tmp_path / "m.parquet").studies()}
    assert sorted(studies) == [f"nih-{name}" for name in "abcdef"]
    assert studies["nih-c"].images["frontal"][0] == boxed / "images/c.png"  # not twice
    assert studies["nih-e"].boxes == (Box("lung opacity", 0.1, 0.1, 0.2, 0.2),)
    assert studies["nih-f"].labels == ("Mass", "no Pneumonia", "no Lung Opacity", "no Fracture")
    wrong = CliRunner().invoke(
        app, ["prepare", "nih", str(plain), "--nih", str(plain), "--out", str(tmp_path / "n.parquet")]
    )
    assert isinstance(wrong.exception, InputError)


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("labels", "Lung Opacity,,", "Opacity,,", r"image c\.png: rsna_class 'Opacity'; expected Lung Opacity"),
        ("labels", "YES,NO", "MAYBE,NO", r"image d\.png: google_fracture 'MAYBE'; expected YES, NO or nothing"),
        ("labels", "a.png", "gone.png", r"1 images are not in .*, the first is gone\.png"),
        ("boxes", "rsna,right", "rsna,up", r"a box of c\.png has side 'up'; expected left, right, both or nothing"),
        ("boxes", "c.png", "z.png", r"a box of z\.png, which is not listed"),
        ("boxes", "0.1,0.2", "100,0.2", "fractions of its width and height"),
        ("boxes", "0.1,0.2", "x,0.2", r"a box of a\.png is 'x'; expected a number"),
        ("boxes", "side", "where", "column 'side'"),
    ],
)
def test_refusals(boxed: Path, tmp_path: Path, file: str, old: str, new: str, words: str) -> None:
    table = boxed / f"{file}.csv"
    table.write_text(table.read_text().replace(old, new, 1))
    with pytest.raises(DataError, match=words):
        nih_boxes.prepare(boxed, tmp_path / "m.parquet")
    assert not (tmp_path / "m.parquet").exists()
    with pytest.raises(DataError, match="not a folder of boxes"):
        nih_boxes.prepare(tmp_path, tmp_path / "m.parquet")


@pytest.mark.data
def test_the_published_boxes(data_dir: Path, tmp_path: Path) -> None:
    made = nih_boxes.prepare(data_dir / "nih_boxes", tmp_path / "m.parquet", nih=data_dir / "nih")
    own = [row for row in made.rows if "nih_boxes" in str(row.file)]
    assert (len(own), sum(len(row.boxes) for row in own)) == (704, 934)
    assert len(made.rows) == 704 + 1705 - 55
    assert sum(len(row.boxes) for row in made.rows) == 934 + 185 - 18  # 18 of the 185 are of images in both folders
    assert Counter(box.label for row in own for box in row.boxes)["infiltrate"] == 91
    assert sum("/left" in term or "/right" in term for row in own for term in row.qualified) > 500
    assert not [row for row in made.rows if len({*row.labels}) < len(row.labels)]
    # The side is the patient's: on his right, it is on the image's left
    for row in own:
        for box in row.boxes:
            sides = [term for term in row.qualified if box.label in term.lower()]
            if sides and sides[0].endswith("/right") and "/left" not in sides[0]:
                assert box.x < 0.5
