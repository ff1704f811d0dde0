"""ChestX-Det and ChestX-Det10, made up."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from tests.data.sources.conftest import image
from xgem.data.mask_files import stored_mask
from xgem.data.sources import chestx_det
from xgem.labels.vocabulary import annotated_labels
from xgem.types import DataError

SQUARE = [[4, 4], [12, 4], [12, 12], [4, 12]]
EFFUSIONS = {
    "file_name": "36346.png",
    "syms": ["Effusion", "Effusion", "Diffuse Nodule"],
    "boxes": [[4, 4, 12, 12], [20, 20, 48, 30], [30, 0, 34, 4]],
    "polygons": [SQUARE, [[20, 20], [39, 20], [39, 30]], [[30, 0], [34, 0]]],
}
NOTHING: dict[str, Any] = {"file_name": "40.png", "syms": [], "boxes": [], "polygons": []}


def release(source: Path, chest, first: dict[str, Any] = EFFUSIONS) -> Path:
    for name in ("train/36346.png", "train/40.png", "test/41.png"):
        image(source / name, chest)
    (source / "ChestX_Det_train.json").write_text(json.dumps([first, NOTHING, NOTHING | {"file_name": "gone.png"}]))
    (source / "ChestX_Det_test.json").write_text(json.dumps([NOTHING | {"file_name": "41.png"}]))
    return source


def test_findings_are_labels_boxes_and_masks(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        made = chestx_det.prepare(release(tmp_path / "c", chest), tmp_path / "m.parquet")
    first, second, third = made.rows
    for words in ("1 of 3 listed images", "1 boxes reach over the edge", "an outline of Diffuse Nodule has 2 corners"):
        assert words in caplog.text
    assert first.labels == ("Effusion", "Diffuse Nodule")
    assert [(box.label, box.x, box.w) for box in first.boxes] == [
        ("effusion", 0.1, 0.2),
        ("effusion", 0.5, 0.5),
        ("diffuse nodule", 0.75, 0.1),
    ]
    assert first.masks == {"pleural effusion": ("chestx-det-masks/36346.pleural_effusion.png",)}
    mask = stored_mask(made.masks(first)["pleural effusion"][0])[0]
    assert (mask[4:13, 4:13].all(), mask[21, 38], mask[29, 21]) == (True, True, False)
    labels = annotated_labels(first.labels, first.source)
    assert (labels["Pleural Effusion"], labels["Lung Lesion"], labels["Cardiomegaly"]) == (1, 1, 0)
    assert "Pneumonia" not in labels
    assert (second.labels, second.subject) == (("No Finding",), "chestx-det-40")
    assert third.split == "test"
    assert {first.split, second.split} <= {"train", "val"}


def test_ten_findings_of_patients_of_nih(tmp_path: Path, chest) -> None:
    for name in ("00000042_006.png", "00000042_007.png"):
        image(tmp_path / "images" / name, chest)
    listed = {"file_name": "00000042_006.png", "syms": ["Fibrosis"], "boxes": [[1, 2, 11, 22]]}
    (tmp_path / "train.json").write_text(json.dumps([listed]))
    (tmp_path / "test.json").write_text(
        json.dumps([{"file_name": "00000042_007.png", "syms": [], "boxes": []}]), encoding="utf-8"
    )
    train, test = chestx_det.prepare(tmp_path, tmp_path / "m.jsonl").rows
    assert (train.subject, train.split, test.split) == ("nih-42", "test", "test")
    assert (train.source, train.masks, train.boxes[0].label) == ("chestx-det10", {}, "fibrosis")
    labels = annotated_labels(train.labels, train.source)
    assert labels["Pneumothorax"] == labels["Fracture"] == 0
    assert not {"Cardiomegaly", "Pleural Other", "Lung Opacity"} & labels.keys()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"syms": ["Effusion"]}, "a box, and a polygon if there are any, for each of syms"),
        ({"syms": ["Effusion", "Effusion", "Gout"]}, "finding 'Gout'; expected one of No Finding, Atelectasis"),
        ({"boxes": [[1, 2, 3]] * 3}, "boxes"),
        ({"file_name": None}, "file_name"),
    ],
)
def test_refusals(tmp_path: Path, chest, change: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        chestx_det.prepare(release(tmp_path / "c", chest, EFFUSIONS | change), tmp_path / "out/m.jsonl")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_other_folders_are_refused(tmp_path: Path, chest) -> None:
    with pytest.raises(DataError, match="not a ChestX-Det folder"):
        chestx_det.prepare(tmp_path, tmp_path / "m.jsonl")
    (tmp_path / "train.json").write_text("[")
    with pytest.raises(DataError, match="Invalid JSON"):
        chestx_det.prepare(tmp_path, tmp_path / "m.jsonl")
    (tmp_path / "train.json").write_text(json.dumps([NOTHING]))
    with pytest.raises(DataError, match="none of its 1 images"):
        chestx_det.prepare(tmp_path, tmp_path / "m.jsonl")
