"""RALO, made up."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.data.sources.conftest import image
from xgem.data.sources import ralo
from xgem.labels.vocabulary import annotated_labels
from xgem.types import DataError

HEAD = (
    ",,Reader 1,,,Reader 2,,\n"
    "Subject_ID,Exam_DateTime,Right OPACITY,Total GEOGRAPHIC,Total OPACITY,"
    "Right OPACITY,Total GEOGRAPHIC,Total OPACITY\n"
)
ROWS = "p1,20200401_1,1,4,3,2,4,5\np1,20200402_1,0,0,0,0,0,0\np2,20200403_1,0,0,0,0,1,2\np3,20200403_1,1,1,8,,,\n"


def release(source: Path, chest, rows: str = ROWS, head: str = HEAD) -> Path:
    for number in range(4):
        image(source / f"CXR_images_scored/{number}.jpg", chest)
    (source / "ralo-dataset-metadata.csv").write_text(f"{head}{rows}p4,20200404_1,1,1,1,1,1,1\n")
    return source


def test_scores_are_means_on_the_scale_of_manifests(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        rows = ralo.prepare(release(tmp_path / "r", chest), tmp_path / "m.parquet").rows
    assert "1 of 5 listed images" in caplog.text
    assert [row.severity for row in rows] == [4 * 2.25, 0, 2.25, 18]
    assert [row.labels for row in rows] == [
        ("Lung Opacity",),
        ("no Lung Opacity",),
        ("possible Lung Opacity",),
        ("Lung Opacity",),
    ]
    assert [annotated_labels(row.labels, "ralo").get("Lung Opacity") for row in rows] == [1, 0, None, 1]
    assert (rows[0].subject, rows[0].study, rows[1].study) == (rows[1].subject, "ralo-0", "ralo-1")
    assert rows[0].split == rows[1].split


@pytest.mark.parametrize(
    ("rows", "head", "words"),
    [
        ("p,d,1,1,9,1,1,1\n", HEAD, r"image 0 has Total OPACITY \[9\.0, 1\.0\]; expected 0 to 8"),
        ("p,d,1,1,x,1,1,1\n", HEAD, "image 0: Total OPACITY is 'x'; expected a number"),
        ("p,d,1\n", HEAD, "image 0 has 3 cells; expected 8"),
        ("", HEAD.replace("2,,\n", "2,\n").replace(",Total OPACITY\n", "\n"), "not 2 of Total OPACITY"),
        ("", "a,b\n", "no column Subject_ID"),
        ('p,"d\n', HEAD, "not readable as a CSV table"),
    ],
)
def test_refusals(tmp_path: Path, chest, rows: str, head: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        ralo.prepare(release(tmp_path / "r", chest, rows, head), tmp_path / "m.jsonl")
    assert "\n" not in str(caught.value)


def test_other_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no ralo-dataset-metadata\.csv"):
        ralo.prepare(tmp_path, tmp_path / "m.jsonl")
    (tmp_path / "ralo-dataset-metadata.csv").write_text(HEAD + ROWS)
    with pytest.raises(DataError, match="none of its 4 images"):
        ralo.prepare(tmp_path, tmp_path / "m.jsonl")
