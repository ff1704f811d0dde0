"""Public data sets in the layouts that they come in, made small."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

MESH = "Cardiomegaly/mild;Pulmonary Disease, Chronic Obstructive;No Indexing;Cardiomegaly/ mild"
REPORTS = f"""uid,MeSH,Problems,image,indication,comparison,findings,impression
1,normal,normal,Xray Chest PA and Lateral,,,The lungs are clear.,Normal chest x-XXXX.
2,"{MESH}","Cardiomegaly;Pulmonary Disease, Chronic Obstructive;No Indexing;Cardiomegaly",,,,The heart is large..,
3,Technical Quality of Image Unsatisfactory ,Technical Quality of Image Unsatisfactory ,,,,,
4,Lymph nodes/hilum/left,Lymph nodes,,,,,1. Node.
"""
MASKS = """image,mask,structure,view,finding,sex,age,image_licence,image_url
case-2-day1.png,m0.png,Left Lung,PA,"COVID-19, ARDS",M,40,CC BY,
case-2-day1.png,m1.png,Central Venous Line,PA,"COVID-19, ARDS",M,40,CC BY,
case-2-day1.png,m2.png,Nosogastric Tube,PA,"COVID-19, ARDS",M,40,CC BY,
case-2-day1.png,m3.png,Ground Glass Opacities,PA,"COVID-19, ARDS",M,40,CC BY,
case-2-day9.png,m4.png,Right Lung,AP,,,,,
"""
BRIXIA = "\ufefffilename,S-A,S-Global,J-Global\na.v1.jpeg,3,18,17\nb.jpg,0,0,0\ngone.jpg,1,2,3\n"


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


@pytest.fixture
def masks(tmp_path: Path, chest) -> Path:
    """masks.csv + images/ + masks/."""
    source = tmp_path / "masks"
    for name in ("case-2-day1.png", "case-2-day9.png", "unlisted.png"):
        image(source / "images" / name, chest)
    (source / "masks").mkdir()
    for number in range(5):
        mask = Image.new("1", (40, 40))
        mask.paste(1, (8, 8, 20 + number, 20))
        mask.save(source / "masks" / f"m{number}.png")
    (source / "masks.csv").write_text(MASKS)
    return source


@pytest.fixture
def brixia(tmp_path: Path, chest) -> Path:
    """brixia.csv with a byte order mark + images/, of other endings."""
    source = tmp_path / "severity"
    for name in ("a.v1.png", "b.png"):
        image(source / "images" / name, chest)
    (source / "brixia.csv").write_text(BRIXIA, encoding="utf-8")
    return source
