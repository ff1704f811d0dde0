"""Training of the re-identification network: pairs, resuming, what it learns, what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.train.batches import batch_of
from xgem.cli import main
from xgem.data.manifest import Manifest, Row
from xgem.judges.reid import WEIGHTS_NAME, ReidConfig, load_reid
from xgem.train import reid
from xgem.train.loop import LoopOptions
from xgem.train.reid import PRESETS, ReidStage
from xgem.train.reid_pairs import Patients, pair_auc
from xgem.train.share import Share
from xgem.types import CheckpointError, ConfigError, DataError, InputError

QUIET = LoopOptions(progress=False, tensorboard=False)
RESUME = replace(QUIET, resume=True)


def manifest_of(folder: Path, patients: dict[str, int], images: int) -> Path:
    """Each patient has a pattern of stripes, each image of the patient another brightness and some noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:40, 0:40] / 40
    rows: list[Row] = []
    for split, count in patients.items():
        for number in range(count):
            a, b, c = rng.uniform(3, 14, 3)
            for k in range(images):
                waves = 120 + 10 * k + 50 * np.sin(a * x + c) + 50 * np.cos(b * y)
                file = f"{split}{number}-{k}.png"
                grey = (waves + rng.normal(0, 4, x.shape)).clip(0, 255).astype(np.uint8)
                Image.fromarray(grey).save(folder / file)
                values: dict[str, Any] = {"study": file, "subject": f"{split}{number}", "split": split, "file": file}
                rows.append(Row(view="frontal", source="ab"[number % 2], **values))
    Manifest(tuple(rows), folder).write(folder / "pairs.jsonl")
    return folder / "pairs.jsonl"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return manifest_of(tmp_path_factory.mktemp("patients"), {"train": 24, "val": 8, "test": 4}, 3)


@pytest.fixture(scope="module")
def patients(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Patients:
    return Patients.load(Manifest.read(data), ("train",), 32, tmp_path_factory.mktemp("cache"), progress=False)


class Killed(BaseException):
    """Ends a run as a signal would: nothing catches it."""


@pytest.mark.parametrize("step", [3, 5])
def test_a_resumed_run_equals_an_unbroken_one(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    manifest = Manifest.read(data)
    reid.run(manifest, tmp_path / "whole", QUIET, preset="debug", progress=False)
    batch = ReidStage.batch

    def dies(self: ReidStage, share: Share) -> dict[str, Any]:
        if share.step == step:
            raise Killed
        return batch(self, share)

    monkeypatch.setattr(ReidStage, "batch", dies)
    with pytest.raises(Killed):
        reid.run(manifest, tmp_path / "broken", QUIET, preset="debug", progress=False)
    assert not (tmp_path / "broken" / WEIGHTS_NAME).exists()
    monkeypatch.setattr(ReidStage, "batch", batch)
    with pytest.raises(CheckpointError, match="--resume"):
        reid.run(manifest, tmp_path / "broken", QUIET, preset="debug", progress=False)
    reid.run(manifest, tmp_path / "broken", RESUME, preset="debug", progress=False)
    for name in (WEIGHTS_NAME, "reid.json"):
        assert (tmp_path / "broken" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_it_learns_whose_images_are_whose(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = {"steps": 40, "batch_size": 16, "ema_decay": 0.9, "validate_every": 40, "checkpoint_every": 40}
    debug = PRESETS["debug"].train
    assert debug is not None
    train = debug.model_copy(update=changes)
    monkeypatch.setitem(PRESETS, "debug", replace(PRESETS["debug"], train=train))
    reid.run(Manifest.read(data), tmp_path, QUIET, preset="debug", progress=False)
    record = json.loads((tmp_path / "reid.json").read_text())
    assert record["auc"]["low"] > 0.6
    assert record["auc"]["n"] == 12
    assert record["pairs"] == {"of one patient": 36, "of two": 360}
    assert load_reid(tmp_path).config == PRESETS["debug"].network


def test_pairs_are_balanced_and_stay_within_a_source(patients: Patients) -> None:
    owner = {row: patient for patient, rows in patients.rows.items() for row in rows}
    rng = np.random.default_rng(0)
    for patient in patients.several:
        first, second = patients.pair(patient, True, rng)
        assert first != second
        assert owner[first] == owner[second] == patient
        first, second = patients.pair(patient, False, rng)
        assert owner[first] == patient != owner[second]
        assert patients.source[second] in {patients.source[row] for row in patients.rows[patient]}
    batch = batch_of(ReidStage(PRESETS["debug"], patients, patients, 0), 0)
    assert batch["same"].tolist() == [1, 0] * 4
    assert batch["first"].shape == batch["second"].shape == (8, 3, 32, 32)


def test_every_image_of_a_patient_is_judged_with_limits(patients: Patients) -> None:
    rows, same, whose = patients.judged(0)
    assert same.sum() == 24 * 3
    assert (~same).sum() == 10 * same.sum()
    assert all((a == b) == one for (a, b), one in zip(whose, same, strict=True))
    assert len({frozenset(pair) for pair in rows[same].tolist()}) == same.sum()
    again, _, _ = patients.judged(0)
    np.testing.assert_array_equal(rows, again)


def test_data_without_two_images_of_a_patient(tmp_path: Path) -> None:
    path = manifest_of(tmp_path, {"train": 4, "val": 4}, 1)
    with pytest.raises(DataError, match="no patient of split train has two frontal images"):
        reid.run(Manifest.read(path), tmp_path / "out", QUIET, preset="debug", progress=False)


def test_area_is_scikit_learns_and_resamples_patients() -> None:
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(0)
    same = np.arange(220) < 20
    scores = np.round(rng.normal(size=220) + same, 1)
    whose = [(f"p{i % 10}", f"p{i % 10}") for i in range(20)] + [(f"p{i % 10}", f"q{i}") for i in range(200)]
    found = pair_auc(scores, same, whose, draws=200)
    assert found.value == pytest.approx(roc_auc_score(same, scores))
    assert found.n == 10
    assert found.low < found.value < found.high
    assert pair_auc(same.astype(float), same, whose, draws=50).interval == (1, 1)


def test_starting_from_other_weights(data: Path, patients: Patients, tmp_path: Path) -> None:
    reid.run(Manifest.read(data), tmp_path, QUIET, preset="debug", progress=False)
    there = load_reid(tmp_path)
    stage = ReidStage(PRESETS["debug"], patients, patients, 0, tmp_path)
    for key, value in stage.module.state_dict().items():
        assert value.equal(there.network.state_dict()[key])
    assert stage.fingerprint() != ReidStage(PRESETS["debug"], patients, patients, 0).fingerprint()
    other = replace(PRESETS["debug"], network=ReidConfig(block="basic", layers=(1, 1, 1, 1), size=64))
    with pytest.raises(ConfigError, match="differs from the preset's"):
        ReidStage(other, patients, patients, 0, tmp_path)
    with pytest.raises(InputError, match="expected one of published, small, mobilenet, debug"):
        reid.run(Manifest.read(data), tmp_path, QUIET, preset="openi-256", progress=False)


def test_the_command(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "reid", "--data", str(data), "--preset", "debug", "--out", str(tmp_path), "--no-progress"]
    assert main(command) == 0
    assert (tmp_path / WEIGHTS_NAME).is_file()
    assert main(command) == 1
    assert "--resume" in capsys.readouterr().err
    assert main(["train", "clip", "--data", str(data), "--out", str(tmp_path)]) == 2
    assert "name it with --preset" in capsys.readouterr().err


def test_pairs_of_two_patients_have_sources_of_pairs_of_one(tmp_path: Path) -> None:
    # Patients 0 to 3 have an image in each of two sources, the others in one: a pair of two that only patients of one
    # source could make would tell the network of sources
    manifest = Manifest.read(manifest_of(tmp_path, {"train": 12}, 2))
    rows = [
        row.model_copy(update={"source": "ab"[int(str(row.file)[-5])] if row.subject in FEW else "a"})
        for row in manifest.rows
    ]
    mixed = Patients.load(Manifest(tuple(rows), manifest.root), ("train",), 32, tmp_path / "cache", progress=False)
    assert set(FEW) <= set(mixed.several)
    pairs, same, _ = mixed.judged(0)
    sources = [(mixed.source[int(a)], mixed.source[int(b)]) for a, b in pairs]
    of_one = {pair for pair, one in zip(sources, same, strict=True) if one}
    assert {pair for pair, one in zip(sources, same, strict=True) if not one} <= of_one
    assert ("a", "b") in of_one or ("b", "a") in of_one


FEW = ("train0", "train1", "train2", "train3")
