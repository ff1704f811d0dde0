"""Captions of open articles: texts without an image, small, and the real ones where they are."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from xgem.cli.data import app
from xgem.data.manifest import Manifest, split_of
from xgem.data.sources import roco
from xgem.types import XgemError

CAPTIONS = """id,article,caption,licence
ROCO_1,PMC1,"Chest x-ray showing a left pleural effusion (arrow), and a nodule [black arrowheads]",CC BY
ROCO_2,PMC1,Air under the right diaphragm (see Figure 2).,CC BY-NC
ROCO_3,PMC2,Bilateral infiltrates (day 3).,CC BY-SA
ROCO_4,PMC3,...,CC BY
"""


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    (tmp_path / "text").mkdir()
    (tmp_path / "text/chest_captions.csv").write_text(CAPTIONS)
    return tmp_path / "text"


def test_captions_are_impressions_without_an_image(captions: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    made = roco.prepare(captions, tmp_path / "m.parquet")
    assert Manifest.read(tmp_path / "m.parquet") == made
    assert "1 of 4 captions have no words" in caplog.text
    assert [row.impression for row in made.rows] == [
        "Chest x-ray showing a left pleural effusion, and a nodule.",
        "Air under the right diaphragm.",
        "Bilateral infiltrates (day 3).",
    ]
    assert [row.subject for row in made.rows] == ["roco-PMC1", "roco-PMC1", "roco-PMC2"]
    assert [row.licence for row in made.rows] == ["CC BY", "CC BY-NC", "CC BY-SA"]
    assert all(row.file is None and row.split == split_of(row.subject, val=0.2, test=0) for row in made.rows)
    args = ["prepare", "roco", str(captions), "--out", str(tmp_path / "n.jsonl")]
    assert CliRunner().invoke(app, args).exit_code == 0


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",CC BY-SA", ",", r"caption ROCO_3 has no licence"),
        ("article", "paper", "column 'article'"),
        (CAPTIONS[CAPTIONS.index("ROCO_1") :], "ROCO_4,PMC3,...,CC BY\n", "none of its 1 captions has words"),
        ("ROCO_2", "ROCO_1", "study 'roco-ROCO_1' differs in impression"),
    ],
)
def test_refusals(captions: Path, tmp_path: Path, old: str, new: str, words: str) -> None:
    (captions / "chest_captions.csv").write_text(CAPTIONS.replace(old, new, 1))
    with pytest.raises(XgemError, match=words):
        roco.prepare(captions, tmp_path / "m.parquet")
    with pytest.raises(XgemError, match="not a folder of captions"):
        roco.prepare(tmp_path, tmp_path / "m.parquet")


@pytest.mark.data
def test_real_captions(data_dir: Path, tmp_path: Path) -> None:
    made = roco.prepare(data_dir / "text", tmp_path / "m.parquet")
    assert len(made.rows) == 556
    assert Counter(row.licence for row in made.rows) == {
        "CC BY": 280,
        "CC BY-NC": 139,
        "CC BY-NC-SA": 136,
        "CC BY-SA": 1,
    }
    assert sum(bool(re.search(r"\b(?:left|right)", row.impression, re.IGNORECASE)) for row in made.rows) > 240
    assert not any(re.search(r"\([^)]*\barrows?\b[^)]*\)", row.impression) for row in made.rows)
