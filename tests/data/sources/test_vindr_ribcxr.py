"""VinDr-RibCXR, made up."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.data.sources.conftest import image
from xgem.data.mask_files import stored_mask
from xgem.data.sources import vindr_ribcxr
from xgem.types import DataError

RIBS = [f"{side}{number}" for side in "RL" for number in range(1, 11)]
SQUARE = [{"x": 4.0, "y": 2.0}, {"x": 9.0, "y": 2.0}, {"x": 9.0, "y": 5.0}, {"x": 4.0, "y": 5.0}]


def outlines(split: str, **ribs: dict[str, Any]) -> dict[str, Any]:
    names = {str(k): f"data/{split}/img/VinDr_RibCXR_{split}_00{k}.png" for k in range(2)}
    return {"img": names, **{rib: {"0": None, "1": []} for rib in RIBS}, **ribs}


def release(source: Path, chest, **ribs: dict[str, Any]) -> Path:
    for split, count in (("train", 2), ("val", 1)):
        folder = source / "data" / split
        for number in range(count):
            image(folder / f"img/VinDr_RibCXR_{split}_00{number}.png", chest)
        (folder / f"Vindr_RibCXR_{split}_mask.json").write_text(json.dumps(outlines(split, **ribs)))
    return source


def test_ribs_are_structures(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture) -> None:
    source = release(tmp_path / "r", chest, R1={"0": SQUARE, "1": SQUARE[:3]}, L10={"0": SQUARE})
    with caplog.at_level(logging.WARNING):
        made = vindr_ribcxr.prepare(source, tmp_path / "m.parquet")
    assert "vindr-ribcxr, val: 1 of 2 listed images" in caplog.text
    assert [(row.study, row.split) for row in made.rows] == [
        ("vindr-ribcxr-VinDr_RibCXR_train_000", "train"),
        ("vindr-ribcxr-VinDr_RibCXR_train_001", "train"),
        ("vindr-ribcxr-VinDr_RibCXR_val_000", "val"),
    ]
    assert [list(row.masks) for row in made.rows[:2]] == [["right rib 1", "left rib 10"], ["right rib 1"]]
    mask = stored_mask(made.masks(made.rows[0])["left rib 10"][0])[0]
    assert mask.shape == (40, 40)
    assert (mask.sum(), mask[2:6, 4:10].all()) == (24, True)
    assert made.rows[0].labels == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not readable as JSON"),
        ("[]", "has no 'img'"),
        (json.dumps({"img": {}}), "has no 'R1'"),
        (json.dumps(outlines("train", R2={"0": [{"x": 1}]})), "Field required"),
        (json.dumps(outlines("train", R2={"0": SQUARE[:2]})), "the outline of R2 has 2 corners"),
        (json.dumps(outlines("gone")), "none of its 2 images"),
    ],
)
def test_refusals(tmp_path: Path, chest, text: str, words: str) -> None:
    with pytest.raises(DataError, match="not a VinDr-RibCXR folder"):
        vindr_ribcxr.prepare(tmp_path, tmp_path / "m.jsonl")
    source = release(tmp_path / "r", chest)
    (source / "data/train/Vindr_RibCXR_train_mask.json").write_text(text)
    with pytest.raises(DataError, match=words) as caught:
        vindr_ribcxr.prepare(source, tmp_path / "out/m.jsonl")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
