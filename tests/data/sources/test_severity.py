"""Brixia scores, made small, and the real ones where they are."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.data.sources.conftest import BRIXIA
from xgem.data.manifest import Manifest, merge, split_of
from xgem.data.sources import segmentations, severity
from xgem.types import DataError


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
        ("18,17", "nan,17", r"S-Global of a\.v1\.jpeg is ''; expected a number"),
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
