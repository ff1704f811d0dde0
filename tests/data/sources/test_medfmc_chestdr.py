"""MedFMC ChestDR, made up."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.data.sources.conftest import image
from xgem.data.sources import medfmc_chestdr
from xgem.labels.vocabulary import annotated_labels
from xgem.types import DataError, InputError

COLUMNS = (
    "pleural_effusion,nodule,pneumonia,cardiomegaly,hilar_enlargement,fracture_old,fibrosis,aortic_calcification,"
    "tortuous_aorta,thickened_pleura,TB,pneumothorax,emphysema,atelectasis,calcification,pulmonary_edema,"
    "increased_lung_markings,elevated_diaphragm,consolidation"
)
NONE = ",".join("0" * 19)
FIRST = "1,0,0,0,0,1,0,0,0,0,1,0,0,0,0,0,0,0,0"
NAMES = ("A.1.2.png", "b.png", "c.png")


def release(source: Path, chest) -> Path:
    for name in NAMES:
        image(source / "images" / name, chest)
    (source / "trainval.txt").write_text(f"A.1.2.png {FIRST}\nb.png {NONE}\ngone.png {NONE}\n")
    (source / "test_WithLabel.txt").write_text(f"c.png {NONE}\n")
    (source / "chest_1-shot_train_exp2.txt").write_text(f"A.1.2.png {FIRST}\n")
    (source / "chest_1-shot_val_exp2.txt").write_text(f"b.png {NONE}\n")
    return source


def test_lists(tmp_path: Path, chest, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        a, b, c = medfmc_chestdr.prepare(release(tmp_path / "m", chest), tmp_path / "m.parquet").rows
    assert "1 of 4 listed images" in caplog.text
    assert (a.study, a.labels, b.labels) == (
        "medfmc-chestdr-A.1.2",
        ("pleural effusion", "fracture old", "TB"),
        ("No Finding",),
    )
    assert c.split == "test"
    assert {a.split, b.split} <= {"train", "val"}
    labels = annotated_labels(a.labels, a.source)
    assert (labels["Pleural Effusion"], labels["Fracture"], labels["Pneumothorax"]) == (1, 1, 0)
    assert not {"Lung Opacity", "Support Devices"} & labels.keys()


def test_few_shot_lists_are_splits(tmp_path: Path, chest) -> None:
    source = release(tmp_path / "m", chest)
    rows = medfmc_chestdr.prepare(source, tmp_path / "m.jsonl", shots=1, drawing=2).rows
    assert [(row.study[-1], row.split) for row in rows] == [("2", "train"), ("b", "val"), ("c", "test")]
    with pytest.raises(DataError, match=r"has no chest_5-shot_train_exp1\.txt; expected MedFMC's lists"):
        medfmc_chestdr.prepare(source, tmp_path / "m.jsonl", shots=5)
    with pytest.raises(InputError, match="drawing: 2 is one of the lists for few-shot learning; give shots too"):
        medfmc_chestdr.prepare(source, tmp_path / "m.jsonl", drawing=2)
    (source / "trainval.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"trainval\.txt: not readable as text"):
        medfmc_chestdr.prepare(source, tmp_path / "m.jsonl")


def test_the_table(tmp_path: Path, chest) -> None:
    for name in NAMES:
        image(tmp_path / "images" / name, chest)
    table = tmp_path / "chestdr_published_19d.csv"
    table.write_text(f"img_id,{COLUMNS}\nA.1.2.png,{FIRST}\nb.png,{NONE}\n")
    rows = medfmc_chestdr.prepare(tmp_path, tmp_path / "m.jsonl").rows
    assert [row.labels for row in rows] == [("pleural effusion", "fracture old", "TB"), ("No Finding",)]
    table.write_text(f"img_id,{COLUMNS}\nb.png,7{NONE[1:]}\n")
    with pytest.raises(DataError, match=r"image b\.png: pleural_effusion is '7'; expected 0 or 1"):
        medfmc_chestdr.prepare(tmp_path, tmp_path / "m.jsonl")
    table.write_text("img_id,nodule\n")
    with pytest.raises(DataError, match="column 'pleural_effusion' is missing"):
        medfmc_chestdr.prepare(tmp_path, tmp_path / "m.jsonl")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("b.png 0,1", r"line 1 is 'b\.png 0,1'; expected an image's name"),
        (NONE, "line 1 is"),
        (f"gone.png {NONE}", "none of its 1 images"),
    ],
)
def test_refusals(tmp_path: Path, chest, line: str, words: str) -> None:
    with pytest.raises(DataError, match="not a ChestDR folder"):
        medfmc_chestdr.prepare(tmp_path, tmp_path / "m.jsonl")
    (tmp_path / "trainval.txt").write_text(f"{line}\n")
    with pytest.raises(DataError, match=words):
        medfmc_chestdr.prepare(tmp_path, tmp_path / "m.jsonl")
