"""Judges of findings as files: saved, loaded, shipped, or trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from xgem.cli.evaluate import app
from xgem.data.manifest import Manifest, Row
from xgem.data.sets import EvalSet, Item
from xgem.judges.classifier import ClassifierConfig
from xgem.judges.judge import scores_of, train_judge
from xgem.judges.saved import RECORD, SHIPPED, load_judge, open_judge, save_judge
from xgem.types import CheckpointError, NotComputed, OutputError

CONFIG = ClassifierConfig(size=32, width=4, epochs=2, batch_size=8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> EvalSet:
    """Images with edema are brighter."""
    folder, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    items: list[Item] = []
    for i in range(32):
        np.save(folder / f"{i}.npy", rng.integers(60, 120, (32, 32), dtype=np.uint8) + np.uint8(80 * (i % 2)))
        items.append(Item(str(i), folder / f"{i}.npy", labels={"Edema": float(i % 2), "Fracture": float(i % 3 == 0)}))
    return EvalSet("images", tuple(items))


def test_a_saved_judge_scores_as_the_one_that_was_trained(images: EvalSet, tmp_path: Path) -> None:
    judge = train_judge(images, config=CONFIG)
    save_judge(judge, tmp_path / "judge", {"note": "made up"})
    loaded = load_judge(tmp_path / "judge")
    assert loaded.classes == judge.classes == ("Edema", "Fracture")
    np.testing.assert_allclose(scores_of(loaded, images), scores_of(judge, images), atol=2e-3)  # saved as float16
    np.testing.assert_array_equal(loaded.thresholds, judge.thresholds)
    assert json.loads((tmp_path / "judge" / RECORD).read_text())["note"] == "made up"
    with pytest.raises(OutputError):
        save_judge(judge, tmp_path / "judge" / RECORD / "deeper", {})


def test_which_judge_is_opened(images: EvalSet, tmp_path: Path) -> None:
    shipped = open_judge(None, "frontal", images)
    assert shipped.weights == load_judge(SHIPPED / "frontal").weights
    assert "Cardiomegaly" in shipped.classes
    trained = open_judge("train", "frontal", images, config=CONFIG)
    assert trained.classes == ("Edema", "Fracture")
    save_judge(trained, tmp_path / "own", {})
    assert open_judge(str(tmp_path / "own"), "frontal", None).classes == trained.classes
    assert open_judge(None, "oblique", images, config=CONFIG).weights == trained.weights  # none ships for this view
    for source, view in (("train", "frontal"), (None, "oblique")):
        with pytest.raises(NotComputed, match="real training images"):
            open_judge(source, view, None)


@pytest.mark.parametrize("damage", ["no record", "no weights", "other classes", "no file of weights"])
def test_damaged_judges_are_refused(images: EvalSet, tmp_path: Path, damage: str) -> None:
    save_judge(train_judge(images, config=CONFIG), tmp_path, {})
    if damage == "no record":
        (tmp_path / RECORD).unlink()
    elif damage == "other classes":
        (tmp_path / RECORD).write_text((tmp_path / RECORD).read_text().replace('"Edema",', '"Edema", "Mass",'))
    else:
        (tmp_path / "model.safetensors").write_bytes(b"no weights")
        if damage == "no weights":
            (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError) as caught:
        load_judge(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_command_trains_measures_and_writes_a_judge(images: EvalSet, tmp_path: Path) -> None:
    rows = [
        Row(
            study=item.id,
            subject=item.id,
            split="train" if k < 20 else "val",
            view="frontal",
            file=str(item.file),
            labels=("Edema",) if item.labels["Edema"] else ("No Finding",),
            source="chexpert",
        )
        for k, item in enumerate(images.items)
    ]
    Manifest(tuple(rows), tmp_path).write(tmp_path / "m.jsonl")
    told = ["judge", "--data", str(tmp_path / "m.jsonl"), "--out", str(tmp_path / "judge"), "--classifier-epochs", "1"]
    ran = CliRunner().invoke(app, told, catch_exceptions=False)
    assert ran.exit_code == 0
    assert "Edema" in ran.stdout
    record = json.loads((tmp_path / "judge" / RECORD).read_text())
    assert record["auroc"]["Edema"]["positives"] == 6
    assert 0 <= record["auroc"]["macro"]["auroc"]["value"] <= 1
    assert load_judge(tmp_path / "judge").classes == ("No Finding", "Edema")
    again = CliRunner().invoke(app, told)
    assert isinstance(again.exception, OutputError)
