"""The checks of texts: honest ones pass, every class of lies is caught, and what no fact states is named."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from xgem.curation.checks import contradictions, ways_wrong
from xgem.curation.facts import Facts, facts_of
from xgem.curation.writing import structured
from xgem.data.annotations import Box
from xgem.data.rows import Row


def facts(labels: tuple[str, ...] = (), **fields: Any) -> Facts:
    row = Row(
        study="s", subject="s", split="train", view="frontal", file="f.png", labels=labels, source="nih", **fields
    )
    return facts_of([row], [row.view])


def test_lies_of_every_class_are_caught(project: Path) -> None:
    results = runpy.run_path(str(project / "benchmarks" / "curation_lies.py"))["measured"](60)
    assert results.pop("honest") == {"n": 60, "refused": 0}
    assert len(results) == 6
    assert all(one["caught"] >= 0.95 * one["n"] and one["n"] == 60 for one in results.values()), results


KNOWN = facts(("Effusion", "Emphysema"), qualified=("Effusion/left", "Emphysema"), age=66.0, sex="M")
HONEST = "Frontal chest radiograph of a 66-year-old male patient. Left pleural effusion. Emphysema."


def test_the_structured_description_passes() -> None:
    assert structured(KNOWN).findings == HONEST
    assert ways_wrong(HONEST, KNOWN) == []
    normal = facts(("No Finding",), sex="F")
    assert structured(normal).findings == (
        "Frontal chest radiograph of a female patient. No acute cardiopulmonary abnormality."
    )
    assert ways_wrong(structured(normal).whole, normal) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("Unchanged from the prior study.", "holds a comparison with earlier images"),
        ("The effusion measures 3 cm.", "holds a measurement"),
        ("Seen on 12/03/2024.", "holds a date or a time"),
        ("Call +1 415 555 0100 now.", "holds a phone number or an address"),
        ("Read by Dr. Smith.", "holds a person's name"),
        ("**Findings** are as above.", "holds markup"),
        ("As an AI language model, this is all.", "holds words about itself"),
        ("Follow-up is recommended.", "holds advice"),
        ("A large effusion.", "says 'large', an extent that no fact states"),
        ("The lateral view agrees.", "speaks of a lateral view, the images are frontal"),
        ("He is in his 70s.", "says an age in the 70s, it is 66"),
        ("The bilateral bases are seen.", "says 'bilateral', a side that no fact states"),
        ("There is scoliosis.", "speaks of scoliosis, which is not among the facts"),
    ],
)
def test_what_no_fact_states_is_named(text: str, wrong: str) -> None:
    assert wrong in ways_wrong(f"{HONEST} {text}", KNOWN)


def test_omissions_are_named() -> None:
    assert ways_wrong("Chest radiograph. Emphysema.", KNOWN) == ["does not mention Pleural Effusion"]
    assert ways_wrong("Left pleural effusion.", KNOWN) == ["does not mention emphysema"]
    assert ways_wrong("Left pleural effusion. No emphysema.", KNOWN) == ["denies emphysema"]


def test_the_side_of_a_box_is_a_fact() -> None:
    boxed = facts(("Mass",), boxes=(Box("mass", 0.6, 0.2, 0.2, 0.2),))
    assert structured(boxed).impression == "Left mass."
    assert ways_wrong("A left mass is seen.", boxed) == []
    assert ways_wrong("A right mass is seen.", boxed)[0] == "places Lung Lesion on the right, it is on the left"


def test_nothing_is_said_of_what_is_unknown() -> None:
    unknown = facts()
    assert not unknown.says_something
    assert facts(severity=7.0).summary == "Brixia score 7."
    assert facts(("Nodule",), age=80.0, race="White").patient == (
        "Frontal chest radiograph of an 80-year-old White patient."
    )


@pytest.mark.parametrize(
    ("labels", "report", "wrong"),
    [
        (
            ("No Finding",),
            "Large right pleural effusion.",
            ["states Pleural Effusion, where the labels name no finding"],
        ),
        (("Effusion",), "No pleural effusion.", ["denies Pleural Effusion, which the labels name"]),
        (("Cardiomegaly",), "Normal chest.", ["names no finding, where the labels name Cardiomegaly"]),
        (("Effusion",), "Small effusion. Old rib fracture.", []),
        (("No Finding",), "No acute abnormality. Mild scoliosis.", []),
    ],
)
def test_reports_that_contradict_labels(labels: tuple[str, ...], report: str, wrong: list[str]) -> None:
    assert contradictions(report, facts(labels)) == wrong
