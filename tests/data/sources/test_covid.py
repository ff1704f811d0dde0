"""The COVID-19 collection and the Hannover repository: small, and the real ones where they are."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.data.sources.conftest import image
from xgem.cli.data import app
from xgem.configs.components import TransformConfig
from xgem.data.manifest import Manifest, merge
from xgem.data.show import write_page
from xgem.data.sources import covid, hannover, segmentations, severity
from xgem.data.study import read_study
from xgem.types import DataError

COVID = """file,in_shared,patient,sex,age,view,finding,notes,lung_mask,licence,url
case-2-day1.png,segmentations,2,M,65,PA,COVID-19,,case-2-day1_lungs.png,,
other-7.png,,2,M,65,AP Supine,"COVID-19, ARDS",,other-7_lungs.png,CC BY 4.0,
other-8-L.png,,3,F,,L,Pneumonia,A note.,other-7_lungs.png,,
other-8-L.png,,3,F,,L,Pneumonia,Twice.,,,
gone.png,,4,F,,PA,No Finding,,,CC BY,
"""
HANNOVER = """file,patient,sex,view,days_since_admission
a.png,04a33bab,M,AP,0
b.png,04a33bab,M,PA,2
c.png,0664ee2b,F,AP,0
"""


@pytest.fixture
def collection(tmp_path: Path, chest) -> Path:
    source = tmp_path / "covid"
    for name in ("other-7", "other-8-L"):
        image(source / f"images/{name}.png", chest)
    (source / "masks").mkdir()
    mask = Image.new("1", (40, 40))
    mask.paste(1, (4, 8, 16, 30))
    mask.paste(1, (24, 8, 36, 24))  # the patient's left lung is the smaller one
    mask.save(source / "masks/other-7_lungs.png")
    (source / "labels.csv").write_text(COVID)
    return source


@pytest.fixture
def repository(tmp_path: Path, chest) -> Path:
    source = tmp_path / "hannover"
    for name in "abc":
        image(source / f"images/{name}.png", chest)
    (source / "labels.csv").write_text(HANNOVER)
    return source


def test_covid(collection: Path, masks: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = covid.prepare(collection, tmp_path / "m.parquet")
    assert "covid: 1 of 3 listed images are not there" in caplog.text
    assert "covid: 1 images are listed again; the first row of each counts" in caplog.text
    assert Manifest.read(tmp_path / "m.parquet") == made
    first, second = made.rows
    assert (first.view, first.age, first.sex, first.labels) == ("frontal", 65, "M", ("COVID-19", "ARDS"))
    assert first.masks == {"lungs": ("covid/masks/other-7_lungs.png",)}
    assert first.licence == "masks CC BY 4.0, image CC BY 4.0"
    assert (second.view, second.age, second.masks) == ("lateral", None, {})  # annotations are of frontals
    assert second.licence == "masks CC BY 4.0, image unknown"
    lungs = read_study(made.studies()[0], TransformConfig(size=40)).masks
    assert {name: int(mask.sum()) for name, mask in lungs.items()} == {"left lung": 12 * 16, "right lung": 12 * 22}
    write_page(made, tmp_path / "page.png", count=2)
    # The patient has an image in the set of masks: one subject, one split
    shared = segmentations.prepare(masks, tmp_path / "s.parquet")
    assert first.subject in {row.subject for row in shared.rows}
    merge([made, shared], tmp_path).check()
    args = ["prepare", "covid", str(collection), "--out", str(tmp_path / "n.jsonl")]
    assert CliRunner().invoke(app, args).exit_code == 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("AP Supine", "oblique", r"image other-7\.png has view 'oblique'; expected one of PA, AP, AP Supine, L"),
        ("other-7_lungs.png,CC", "none.png,CC", r"image other-7\.png: its mask 'none\.png' is not in masks"),
        ("in_shared", "shared", "column 'in_shared'"),
        (COVID[COVID.index("other-7") :], "gone.png,,4,F,,PA,No Finding,,,CC BY,\n", "none of its 1 images is in"),
    ],
)
def test_covid_refusals(collection: Path, tmp_path: Path, old: str, new: str, words: str) -> None:
    (collection / "labels.csv").write_text(COVID.replace(old, new, 1))
    with pytest.raises(DataError, match=words):
        covid.prepare(collection, tmp_path / "m.parquet")
    with pytest.raises(DataError, match="not a folder of the COVID-19 collection"):
        covid.prepare(tmp_path, tmp_path / "m.parquet")


def test_a_mask_has_the_size_of_its_image(collection: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("1", (40, 40), 1).save(collection / "masks/other-7_lungs.png")
    assert covid.prepare(collection, tmp_path / "m.parquet").rows[0].masks == {}
    assert "other-7.png: its mask is left out" in caplog.text
    Image.new("1", (30, 40), 1).save(collection / "masks/other-7_lungs.png")
    with pytest.raises(DataError, match=r"a mask of \(30, 40\) pixels for an image of \(40, 40\); make them equal"):
        covid.prepare(collection, tmp_path / "m.parquet")


def test_hannover(repository: Path, tmp_path: Path) -> None:
    args = ["prepare", "hannover", str(repository), "--out", str(tmp_path / "m.parquet")]
    assert CliRunner().invoke(app, args).exit_code == 0
    rows = Manifest.read(tmp_path / "m.parquet").rows
    assert [(row.study, row.subject, row.sex, row.view) for row in rows] == [
        ("hannover-a", "hannover-04a33bab", "M", "frontal"),
        ("hannover-b", "hannover-04a33bab", "M", "frontal"),
        ("hannover-c", "hannover-0664ee2b", "F", "frontal"),
    ]
    assert {row.licence for row in rows} == {"CC BY 3.0"}
    assert {row.labels for row in rows} == {()}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("M,PA", "M,L", r"image b\.png has view 'L'; expected PA or AP"),
        ("b.png,04a33bab", "b.png,", r"image b\.png has no patient"),
        ("patient", "person", "column 'patient'"),
        (HANNOVER[HANNOVER.index("a.png") :], "z.png,1,M,AP,0\n", "none of its 1 images is in"),
    ],
)
def test_hannover_refusals(repository: Path, tmp_path: Path, old: str, new: str, words: str) -> None:
    (repository / "labels.csv").write_text(HANNOVER.replace(old, new, 1))
    with pytest.raises(DataError, match=words):
        hannover.prepare(repository, tmp_path / "m.parquet")
    with pytest.raises(DataError, match="not a folder of the Hannover repository"):
        hannover.prepare(tmp_path, tmp_path / "m.parquet")


@pytest.mark.data
def test_the_real_collection_merges_with_those_that_share_its_images(data_dir: Path, tmp_path: Path) -> None:
    made = covid.prepare(data_dir / "covid", tmp_path / "m.parquet")
    assert Counter(row.view for row in made.rows)["lateral"] > 20
    lungs = [read_study(study, TransformConfig(size=64)).masks for study in made.studies() if study.masks]
    assert len(lungs) > 35
    assert all({*found} == {"left lung", "right lung"} for found in lungs)
    sets = [segmentations.prepare(data_dir / "segmentations", tmp_path / "s.parquet")]
    sets.append(severity.prepare(data_dir / "severity", tmp_path / "b.parquet"))
    for one in sets:
        merge([made, one], tmp_path).check()


@pytest.mark.data
def test_the_real_repository(data_dir: Path, tmp_path: Path) -> None:
    made = hannover.prepare(data_dir / "hannover", tmp_path / "m.parquet")
    assert (len(made.rows), len({row.subject for row in made.rows})) == (194, 56)
    assert {row.split for row in made.rows} == {"train", "val"}
