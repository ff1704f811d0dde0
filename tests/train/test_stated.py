"""What a text states is learned from the text alone: findings and sides that images hardly show are told apart."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.train.batches import batch_of
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.train.clip import ClipStage, stated_labels
from xgem.train.context import StageContext
from xgem.train.corpus import Corpus


def stated(text: str) -> dict[str, list[float]]:
    """Affirmed, left, right of the classes that a text affirms."""
    rows = np.array(stated_labels(text)).reshape(3, -1).T
    assert np.isnan(rows[rows[:, 0] == 0, 1:]).all()
    return {name: row.tolist() for name, row in zip(CHEXPERT_CLASSES, rows, strict=True) if row[0]}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Left upper lobe consolidation.", {"Consolidation": [1, 1, 0]}),
        ("Bilateral effusions. No pneumothorax.", {"Pleural Effusion": [1, 1, 1]}),
        ("Right pneumothorax.", {"Pneumothorax": [1, 0, 1]}),
        ("Possible left pneumonia.", {}),
    ],
)
def test_what_a_text_states(text: str, expected: dict[str, list[float]]) -> None:
    assert stated(text) == expected


def test_a_finding_without_a_side_has_none() -> None:
    row = stated("The heart is enlarged.")["Cardiomegaly"]
    assert row[0] == 1
    assert all(math.isnan(value) for value in row[1:])


@pytest.fixture
def stage(debug_preset: Any, corpora: tuple[Corpus, Corpus]) -> ClipStage:
    torch.manual_seed(0)
    loss = {"stated": 1.0, "hard_negatives": 1}
    config = debug_preset.train["clip"].model_copy(update={"loss": loss, "batch_size": 8})
    preset = debug_preset.model_copy(update={"train": {"clip": config}})
    return ClipStage(StageContext(preset, *corpora, Path("root"), seed=0))


def test_every_text_of_a_batch_states_something_of_its_own(stage: ClipStage) -> None:
    batch = batch_of(stage, 0)
    assert batch["stated"].shape == (len(batch["ids"]), 3 * len(CHEXPERT_CLASSES))
    assert len(batch["ids"]) == len(batch["owner"]["report"]) + len(batch["negatives"])
    loss, logged = stage.loss(stage.module.eval(), batch)
    parts = [logged[name] for name in logged if "-" in name]
    torch.testing.assert_close(loss.detach(), torch.stack(parts).mean() + logged["patches"] + logged["stated"])


def test_it_reaches_the_text_encoder_alone(stage: ClipStage) -> None:
    batch = batch_of(stage, 0)
    stage.module(batch["images"], batch["ids"])[5].sum().backward()
    touched = {
        name.split(".")[0]
        for name, parameter in stage.module.named_parameters()
        if parameter.grad is not None and float(parameter.grad.abs().sum()) > 0
    }
    assert touched == {"text", "stated"}


def test_texts_that_differ_in_the_side_are_told_apart(stage: ClipStage) -> None:
    """Some steps of its loss alone, on texts that no image goes with."""
    texts = ["Left pleural effusion.", "Right pleural effusion."] * 4
    truth = torch.tensor([stated_labels(text) for text in texts])
    module: Any = stage.module.train()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)

    def sides() -> Tensor:
        vectors = module.text(stage.tokenize(texts[:2])).pooled
        return vectors[0] @ vectors[1]

    before = float(sides().detach())
    for _ in range(40):
        logits = module.stated(module.text(stage.tokenize(texts)).pooled * 16)
        known = truth.isfinite()
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(logits[known], truth[known]).backward()
        optimizer.step()
    assert float(sides().detach()) < before - 0.1
