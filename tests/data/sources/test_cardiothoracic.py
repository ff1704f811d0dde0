"""The data set with hand-drawn hearts: small here, and the real one where it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from xgem.cli.data import app
from xgem.configs.components import TransformConfig
from xgem.data.annotations import render
from xgem.data.manifest import Manifest
from xgem.data.sources import cardiothoracic
from xgem.data.study import read_study
from xgem.labels.spatial import Vocabulary
from xgem.types import DataError, InputError

HEADER = "image,mask,structure,view,finding,sex,age,image_licence,image_url\n"


def listed(folder: Path, *lines: str) -> Path:
    """masks.csv + images/ + masks/; each line is of image, mask and structure."""
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for line in lines:
        image, mask, _ = line.split(",")
        Image.fromarray(rng.integers(0, 255, (40, 40), np.uint8)).save(folder / "images" / image)
        outline = np.zeros((40, 40), bool)
        outline[10:30, 5:20] = True
        Image.fromarray(outline).save(folder / "masks" / mask)
    (folder / "masks.csv").write_text(HEADER + "".join(f"{line},PA,,,,MIT,\n" for line in lines))
    return folder


def test_the_heart_is_a_structure_of_its_own(tmp_path: Path) -> None:
    source = listed(tmp_path / "ct", "a.png,a0.png,Left Lung", "a.png,a1.png,Heart", "b.png,b0.png,Heart")
    result = CliRunner().invoke(app, ["prepare", "cardiothoracic", str(source), "--out", str(tmp_path / "m.parquet")])
    assert result.exit_code == 0, result.output
    rows = Manifest.read(tmp_path / "m.parquet").rows
    assert [tuple(row.masks) for row in rows] == [("left lung", "heart"), ("heart",)]
    assert [row.subject for row in rows] == ["cardiothoracic-a", "cardiothoracic-b"]
    assert {row.source for row in rows} == {"cardiothoracic"}
    source = listed(tmp_path / "other", "a.png,a0.png,Airways")
    with pytest.raises(DataError, match="'Airways'; expected one of left lung, right lung, heart"):
        cardiothoracic.prepare(source, tmp_path / "other.parquet")


@pytest.mark.data
def test_the_published_cardiothoracic_masks(data_dir: Path, tmp_path: Path):
    made = cardiothoracic.prepare(data_dir / "cardiothoracic", tmp_path / "m.parquet")
    assert made.summary()["masks"] == {"left lung": 208, "right lung": 208, "heart": 208}
    assert len({row.subject for row in made.rows}) == len(made.rows) == 208
    assert {row.licence for row in made.rows} == {"masks and image MIT"}
    annotation = read_study(made.studies()[0], TransformConfig(size=128))
    rows, columns = np.nonzero(annotation.masks["heart"])
    assert 32 < columns.mean() < 96
    assert rows.mean() > np.nonzero(annotation.masks["left lung"])[0].mean()
    with pytest.raises(InputError, match="unknown structure 'heart': this model knows left lung"):
        render(annotation, 128)
    drawn = render(annotation, 128, vocabulary=Vocabulary.extended(["heart"], []))
    assert (drawn == np.float32(Vocabulary.extended(["heart"], []).level("heart"))).mean() > 0.02
