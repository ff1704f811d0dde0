from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xgem.eval import classifier as judges
from xgem.eval.agreement import auc
from xgem.eval.classifier import LABEL_CLASSES, ClassifierConfig, group_labels, train_classifier
from xgem.eval.statistics import Bootstrap
from xgem.types import InputError, Study

CONFIG = ClassifierConfig(size=32, width=8, epochs=4, batch_size=16)


def planted(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise; the first class is a bright blob in the upper left, the second is never there."""
    rng = np.random.default_rng(seed)
    pictures = rng.integers(60, 120, (n, 32, 32), dtype=np.uint8)
    positive = rng.random(n) < 0.5
    pictures[positive, 4:14, 4:14] += 100
    return pictures, np.stack([positive.astype(float), np.zeros(n)], axis=1)


def test_learns_a_planted_finding_and_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, labels = planted(160, 0)
    judge = train_classifier(pictures, labels, ["blob", "nothing"], config=CONFIG, folder=tmp_path)
    test, truth = planted(60, 1)
    assert auc(judge.logits(test)[:, 0], truth[:, 0], Bootstrap(60, draws=10)).value > 0.95
    assert judge.features(test).shape == (60, 64)

    def fail(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(judges, "_fit", fail)
    again = train_classifier(pictures, labels, ["blob", "nothing"], config=CONFIG, folder=tmp_path)
    assert again.hash == judge.hash
    np.testing.assert_array_equal(again.logits(test), judge.logits(test))
    with pytest.raises(AssertionError, match="trained again"):
        train_classifier(pictures[:-1], labels[:-1], ["blob", "nothing"], config=CONFIG, folder=tmp_path)


def test_a_resumed_training_equals_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, labels = planted(48, 0)
    names = ["blob", "nothing"]
    unbroken = train_classifier(pictures, labels, names, config=CONFIG, folder=tmp_path / "a")
    steps = torch.optim.AdamW.step
    count = 0

    def dies(self: Any, *args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        if count == 8:  # in the third epoch of three steps
            raise KeyboardInterrupt
        return steps(self, *args, **options)

    monkeypatch.setattr(torch.optim.AdamW, "step", dies)
    with pytest.raises(KeyboardInterrupt):
        train_classifier(pictures, labels, names, config=CONFIG, folder=tmp_path / "b")
    monkeypatch.setattr(torch.optim.AdamW, "step", steps)
    assert list((tmp_path / "b").glob("*.partial"))
    assert train_classifier(pictures, labels, names, config=CONFIG, folder=tmp_path / "b").hash == unbroken.hash
    assert not list((tmp_path / "b").glob("*.partial"))


def test_unknown_labels_have_no_say() -> None:
    pictures, labels = planted(48, 0)
    labels[:, 1] = np.nan
    judge = train_classifier(pictures, labels, ["blob", "unknown"], config=CONFIG)
    assert np.isfinite(judge.logits(pictures)).all()
    with pytest.raises(InputError, match="no class"):
        train_classifier(pictures, np.full((48, 2), np.nan), ["a", "b"], config=CONFIG)


def test_random_state_outside_is_left_alone() -> None:
    pictures, labels = planted(32, 0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_classifier(pictures, labels, ["a", "b"], config=ClassifierConfig(size=32, width=8, epochs=1, batch_size=16))
    assert torch.equal(torch.rand(3), expected)


def test_groups_of_labels() -> None:
    def study(*labels: str) -> Study:
        return Study(id="a", subject="a", split="val", labels=labels)

    values = group_labels([study("normal"), study("Opacity", "Spine"), study(), study("Deformity")])
    named = [dict(zip(LABEL_CLASSES, row, strict=True)) for row in values]
    assert set(named[0].values()) == {0.0}
    assert [name for name, value in named[1].items() if value] == ["Abnormal", "Opacity", "Spine"]
    assert np.isnan(values[2]).all()
    assert named[3]["Abnormal"] == 1
    assert sum(named[3].values()) == 1
