"""Texts that differ from a true one in a single statement, and are false."""

from __future__ import annotations

import csv
import random
from collections import Counter
from pathlib import Path

import pytest

from xgem.data.cleaning import clean_report
from xgem.data.sources.openi import labels_from_problems
from xgem.data.wordings import absent_classes
from xgem.labels.hard_negatives import denied, hard_negatives, other_extent, other_findings, other_side
from xgem.labels.rules import label_report
from xgem.labels.sentences import written_sentences

EFFUSION = "Small left pleural effusion."


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (EFFUSION, "Small right pleural effusion."),
        ("Right-sided catheter.", "Left-sided catheter."),
        ("Opacity in the LEFT lung base.", "Opacity in the RIGHT lung base."),
        ("Rightward shift of the trachea.", "Leftward shift of the trachea."),
        ("Opacity left and right.", None),
        ("Bilateral effusions, on the left.", None),
        ("No left effusion.", None),
        ("The left lung is clear.", None),
        ("Copyright.", None),
        ("Effusion.", None),
    ],
)
def test_the_other_side(sentence: str, expected: str | None) -> None:
    assert other_side(sentence) == expected


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (EFFUSION, "Large left pleural effusion."),
        ("There is a mild scoliosis.", "There is a severe scoliosis."),
        ("Mildly enlarged heart.", "Severely enlarged heart."),
        ("No large effusion.", None),
        ("Effusion.", None),
        ("Smaller effusion.", None),
    ],
)
def test_another_extent(sentence: str, expected: str | None) -> None:
    assert other_extent(sentence) == expected


def test_another_finding_is_one_that_the_study_does_not_have() -> None:
    absent = ["Pneumothorax", "Lung Opacity", "Edema", "Support Devices"]
    assert other_findings("There is a small pleural effusion.", absent) == [
        "There is a small pneumothorax.",
        "There is a small opacity.",
    ]
    assert other_findings("A nodule is seen.", ["Lung Opacity"]) == ["An opacity is seen."]
    assert other_findings("Atelectasis in the left lung base.", absent) == ["Pulmonary edema in the left lung base."]
    assert other_findings("No pleural effusion.", absent) == []
    assert other_findings("Pleural effusion.", ["Pleural Effusion"]) == []
    assert other_findings("Scoliosis.", absent) == []


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        (EFFUSION, "No small left pleural effusion."),
        ("There is a nodule in the left lung.", "There is no nodule in the left lung."),
        ("A small effusion is seen.", "No small effusion is seen."),
        ("CHF is present.", "No CHF is present."),
        ("No pleural effusion.", "Pleural effusion."),
        ("No evidence of pneumothorax.", "Pneumothorax."),
        ("There is no focal consolidation.", "There is focal consolidation."),
        ("No acute cardiopulmonary abnormality.", "Acute cardiopulmonary abnormality."),
        ("Unchanged.", None),
        ("Probable edema.", None),
        ("The heart is enlarged and the lungs show edema.", None),
        ("No change.", None),
        ("Without and with contrast, no nodule.", None),
    ],
)
def test_a_denial(sentence: str, expected: str | None) -> None:
    assert denied(sentence) == expected


def test_one_statement_differs_and_every_kind_is_drawn() -> None:
    text = f"{EFFUSION} The trachea is midline."
    drawn: Counter[str] = Counter()
    for seed in range(400):
        rng, same = random.Random(seed), random.Random(seed)
        made = hard_negatives(text, 2, rng, absent=["Pneumothorax"])
        assert made == hard_negatives(text, 2, same, absent=["Pneumothorax"])
        assert len(made) == len(set(made)) == 2
        for one in made:
            first, second = written_sentences(one)
            assert second == "The trachea is midline."
            drawn[first] += 1
    assert set(drawn) == {
        "Small right pleural effusion.",
        "Large left pleural effusion.",
        "Small left pneumothorax.",
        "No small left pleural effusion.",
    }
    assert all(count == pytest.approx(200, abs=50) for count in drawn.values())
    assert len(hard_negatives(text, 9, random.Random(0), absent=["Pneumothorax"])) == 4
    assert hard_negatives("The trachea is midline.", 2, random.Random(0)) == []
    assert hard_negatives("", 2, random.Random(0)) == []


@pytest.mark.parametrize(
    ("told", "exchanged"),
    [
        ("Opacity in the right lung. Calcified granuloma.", True),
        ("Right pleural effusion.", False),
        ("Pleural effusions are bilateral.", False),
        ("Scar on the right.", False),  # which finding it is, the rules cannot tell
        ("No right pleural effusion.", True),
    ],
)
def test_what_is_true_elsewhere_is_not_taken_for_false(told: str, exchanged: bool) -> None:
    made = hard_negatives(EFFUSION, 9, random.Random(0), told=[told])
    assert ("Small right pleural effusion." in made) == exchanged


@pytest.mark.data
def test_on_real_reports_most_have_one_and_none_is_true(data_dir: Path) -> None:
    with (data_dir / "openi/reports.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))[:600]
    found = texts = 0
    for row in rows:
        report = " ".join(filter(None, map(clean_report, (row["findings"], row["impression"]))))
        absent = absent_classes(labels_from_problems(row["Problems"].split(";")), "openi")
        made = hard_negatives(report, 3, random.Random(0), absent=absent)
        texts += bool(report)
        found += bool(made)
        sentences = written_sentences(report)
        for one in made:
            changed = [a for a, b in zip(written_sentences(one), sentences, strict=True) if a != b]
            assert len(changed) == 1
            assert changed[0] not in sentences
    assert found / texts > 0.9
    assert label_report("Small left pneumothorax.")["Pneumothorax"] == 1
