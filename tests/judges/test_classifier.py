from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xgem.judges import classifier as judges
from xgem.judges.classifier import ClassifierConfig, columns_of, train_classifier, train_findings
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.auc import auc
from xgem.metrics.bootstrap import Bootstrap
from xgem.types import InputError

CONFIG = ClassifierConfig(size=32, width=8, epochs=4, batch_size=16)


def planted(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise; the first class is a bright blob in the upper left, the second is never there."""
    rng = np.random.default_rng(seed)
    images = rng.integers(60, 120, (n, 32, 32), dtype=np.uint8)
    positive = rng.random(n) < 0.5
    images[positive, 4:14, 4:14] += 100
    return images, np.stack([positive.astype(float), np.zeros(n)], axis=1)


def test_learns_a_planted_finding_and_is_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = planted(160, 0)
    judge = train_classifier(images, labels, ["blob", "nothing"], config=CONFIG, folder=tmp_path)
    test, truth = planted(60, 1)
    assert auc(judge.logits(test)[:, 0], truth[:, 0], Bootstrap(60, draws=10)).value > 0.95
    assert judge.features(test).shape == (60, 64)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(judges, "fit", fail)
    again = train_classifier(images, labels, ["blob", "nothing"], config=CONFIG, folder=tmp_path)
    assert again.hash == judge.hash
    np.testing.assert_array_equal(again.logits(test), judge.logits(test))
    with pytest.raises(AssertionError, match="trained again"):
        train_classifier(images[:-1], labels[:-1], ["blob", "nothing"], config=CONFIG, folder=tmp_path)


def test_a_resumed_training_equals_an_unbroken_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = planted(48, 0)
    names = ["blob", "nothing"]
    unbroken = train_classifier(images, labels, names, config=CONFIG, folder=tmp_path / "a")
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
        train_classifier(images, labels, names, config=CONFIG, folder=tmp_path / "b")
    monkeypatch.setattr(torch.optim.AdamW, "step", steps)
    assert list((tmp_path / "b").rglob("*.partial"))
    assert train_classifier(images, labels, names, config=CONFIG, folder=tmp_path / "b").hash == unbroken.hash
    assert not list((tmp_path / "b").rglob("*.partial"))


def test_unknown_labels_have_no_say() -> None:
    images, labels = planted(48, 0)
    labels[:, 1] = np.nan
    judge = train_classifier(images, labels, ["blob", "unknown"], config=CONFIG)
    assert np.isfinite(judge.logits(images)).all()
    with pytest.raises(InputError, match="no class"):
        train_classifier(images, np.full((48, 2), np.nan), ["a", "b"], config=CONFIG)


def test_random_state_outside_is_left_alone() -> None:
    images, labels = planted(32, 0)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train_classifier(images, labels, ["a", "b"], config=ClassifierConfig(size=32, width=8, epochs=1, batch_size=16))
    assert torch.equal(torch.rand(3), expected)


def test_the_judge_of_findings_learns_the_classes_that_have_both_labels() -> None:
    images, (present, _) = planted(48, 0)[0], planted(48, 0)[1].T
    labels = np.full((48, len(CHEXPERT_CLASSES)), np.nan)
    labels[:, CHEXPERT_CLASSES.index("Edema")] = present
    labels[:, CHEXPERT_CLASSES.index("Fracture")] = 1  # never absent, so nothing to tell it from
    labels[:20, CHEXPERT_CLASSES.index("Pneumothorax")] = 0
    labels[:5, CHEXPERT_CLASSES.index("Pneumothorax")] = 1
    judge = train_findings(images, labels, config=CONFIG)
    assert judge.classes == ("Edema", "Pneumothorax")
    assert [CHEXPERT_CLASSES[k] for k in columns_of(judge)] == ["Edema", "Pneumothorax"]
    assert judge.logits(images).shape == (48, 2)
    with pytest.raises(InputError, match=r"labels \(48, 2\): expected \(48, 14\)"):
        train_findings(images, labels[:, :2], config=CONFIG)
    with pytest.raises(InputError, match="no class with both"):
        train_findings(images, np.ones_like(labels), config=CONFIG)
