"""Sides of findings, as reports and boxes name them."""

from __future__ import annotations

import pytest

from xgem.data.annotations import Box
from xgem.labels.sides import BOTH, boxed_sides, named_sides, only_side

LEFT, RIGHT = frozenset({"left"}), frozenset({"right"})


@pytest.mark.parametrize(
    ("report", "name", "sides"),
    [
        ("Small left pleural effusion. The right lung is clear.", "Pleural Effusion", LEFT),
        (
            "Right-sided pneumothorax, no left effusion.",
            "Pneumothorax",
            BOTH,
        ),  # both words in the sentence: no one side
        ("Right apical pneumothorax. No left pneumothorax.", "Pneumothorax", RIGHT),
        ("Bilateral pleural effusions, larger on the left.", "Pleural Effusion", BOTH),
        ("Bibasilar atelectasis.", "Atelectasis", BOTH),
        ("Pleural effusion.", "Pleural Effusion", frozenset()),
        ("Left-sided pacemaker with leads in the right atrium and right ventricle.", "Support Devices", LEFT),
    ],
)
def test_a_side_belongs_to_what_its_sentence_affirms(report: str, name: str, sides: frozenset[str]) -> None:
    assert named_sides(report)[name] == sides


def test_what_is_denied_has_no_side() -> None:
    assert "Pleural Effusion" not in named_sides("No left pleural effusion.")


def test_the_left_of_an_image_is_the_patients_right() -> None:
    boxes = [
        Box("effusion", 0.1, 0.6, 0.2, 0.2),
        Box("mass", 0.6, 0.2, 0.2, 0.2),
        Box("cardiomegaly", 0.35, 0.5, 0.3, 0.3),
    ]
    sides = boxed_sides(boxes)
    assert sides == {"Pleural Effusion": RIGHT, "Lung Lesion": LEFT, "Cardiomegaly": BOTH}
    assert only_side(sides, ["Pleural Effusion"]) == "right"
    assert only_side(sides, ["Pleural Effusion", "Lung Lesion"]) is None
    assert only_side(sides, ["Edema"]) is None


def test_a_box_a_little_over_the_middle_is_on_its_own_side() -> None:
    assert boxed_sides([Box("nodule", 0.3, 0.5, 0.22, 0.1)]) == {"Lung Lesion": RIGHT}
