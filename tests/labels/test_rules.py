from __future__ import annotations

import csv
import textwrap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgem.labels.rules import is_known_text, label_matrix, label_report
from xgem.labels.vocabulary import CHEXPERT_CLASSES, NO_FINDING

SENTENCES: list[tuple[str, dict[str, int | None]]] = [
    ("No acute cardiopulmonary abnormality.", {NO_FINDING: 1}),
    ("No acute disease", {NO_FINDING: 1}),
    ("Normal chest x-XXXX.", {NO_FINDING: 1}),
    ("Negative for acute abnormality.", {NO_FINDING: 1}),
    ("Normal heart size.", {"Cardiomegaly": 0, NO_FINDING: 1}),
    ("Heart size within normal limits.", {"Cardiomegaly": 0}),
    ("The heart is not significantly enlarged.", {"Cardiomegaly": 0}),
    ("Stable, nonenlarged cardiomediastinal silhouette.", {"Cardiomegaly": 0}),
    ("Heart size is upper limits of normal.", {"Cardiomegaly": 0}),
    ("Borderline heart size.", {"Cardiomegaly": -1, NO_FINDING: None}),
    ("The heart is mildly enlarged.", {"Cardiomegaly": 1, NO_FINDING: None}),
    ("Stable cardiomegaly without acute disease.", {"Cardiomegaly": 1}),
    ("Resolution of cardiomegaly.", {"Cardiomegaly": 0}),
    ("Mediastinal contours are normal.", {"Enlarged Cardiomediastinum": 0}),
    ("No mediastinal widening.", {"Enlarged Cardiomediastinum": 0}),
    ("Widened mediastinum.", {"Enlarged Cardiomediastinum": 1}),
    (
        "No focal consolidation, pneumothorax or large pleural effusion.",
        {"Consolidation": 0, "Pneumothorax": 0, "Pleural Effusion": 0, NO_FINDING: 1},
    ),
    ("Negative for pneumothorax, pleural effusion or edema.", {"Pneumothorax": 0, "Pleural Effusion": 0, "Edema": 0}),
    ("The lungs are clear of focal airspace disease and effusion.", {"Lung Opacity": 0, "Pleural Effusion": 0}),
    ("Lungs are free of infiltrates.", {"Lung Opacity": 0}),
    ("Lungs are clear without evidence of pneumonia.", {"Lung Opacity": 0, "Pneumonia": 0}),
    ("The effusion has resolved.", {"Pleural Effusion": 0}),
    ("Resolved interstitial edema.", {"Edema": 0}),
    ("Pneumothorax is not seen.", {"Pneumothorax": 0}),
    ("Previously seen nodule is no longer visualized.", {"Lung Lesion": 0}),
    ("No change in moderate left pneumothorax.", {"Pneumothorax": 1}),
    ("No effusion, stable cardiomegaly.", {"Pleural Effusion": 0, "Cardiomegaly": 1}),
    ("No pneumothorax but there is a small left effusion.", {"Pneumothorax": 0, "Pleural Effusion": 1}),
    ("Cardiomegaly without edema.", {"Cardiomegaly": 1, "Edema": 0}),
    ("Possible left basilar infiltrate versus atelectasis.", {"Lung Opacity": -1, "Atelectasis": -1}),
    ("Right base opacity may represent pneumonia.", {"Lung Opacity": 1, "Pneumonia": -1}),
    ("Cannot exclude early edema.", {"Edema": -1}),
    ("Pneumonia cannot be excluded.", {"Pneumonia": -1}),
    ("Left base scarring or atelectasis.", {"Atelectasis": -1}),
    ("Blunting of the angle, question small effusion.", {"Pleural Effusion": -1}),
    ("Large left pleural effusion.", {"Pleural Effusion": 1}),
    ("Small pericardial effusion.", {"Pleural Effusion": None}),
    ("Bibasilar subsegmental atelectasis.", {"Atelectasis": 1}),
    ("1.5 cm nodule in the right upper lobe.", {"Lung Lesion": 1}),
    ("Biapical pleural thickening.", {"Pleural Other": 1, NO_FINDING: None}),
    ("Old healed rib fractures.", {"Fracture": 1}),
    ("No acute fracture.", {"Fracture": 0}),
    ("Please note that fractures may not be demonstrated.", {"Fracture": None}),
    ("Right chest port catheter tip in the SVC. Clear lungs.", {"Support Devices": 1, NO_FINDING: 1}),
    ("Interval removal of the left picc line.", {"Support Devices": 0}),
    ("Pulmonary vascular congestion.", {"Edema": 1}),
    ("Calcified granuloma. No acute disease.", {NO_FINDING: None}),
    ("Degenerative changes of the spine.", {NO_FINDING: None}),
    ("Soft tissue edema of the ankle.", {"Edema": None}),
    ("Pneumonia can't be excluded.", {"Pneumonia": -1}),
    ("Pneumonia couldn't be entirely excluded.", {"Pneumonia": -1}),
    ("Pneumonia isn't excluded.", {"Pneumonia": -1}),
    ("Can't rule out pneumonia.", {"Pneumonia": -1}),
    ("Infiltrate cannot be ruled out.", {"Lung Opacity": -1}),
    ("There isn't any effusion.", {"Pleural Effusion": 0}),
    ("There wasn't any pneumothorax.", {"Pneumothorax": 0}),
    ("I don't see a pneumothorax.", {"Pneumothorax": 0}),
    ("The heart isnt enlarged.", {"Cardiomegaly": 0}),
    ("An effusion doesn't appear to be present.", {"Pleural Effusion": 0}),
    ("The effusion hasn't resolved.", {"Pleural Effusion": 1}),
]


@pytest.mark.parametrize(("text", "expected"), SENTENCES, ids=[text for text, _ in SENTENCES])
def test_sentences(text: str, expected: dict[str, int | None]) -> None:
    labels = label_report(text)
    assert {name: labels[name] for name in expected} == expected


def test_the_strongest_statement_of_a_report_wins() -> None:
    text = "No pneumothorax. Possible edema. Small pneumothorax. No edema."
    labels = label_report(text)
    assert (labels["Pneumothorax"], labels["Edema"]) == (1, -1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "XXXX.",
        "...",
        "nan",
        "NULL.",
        "N/A.",
        "None.",
        "Kein Erguss.",
        "\U0001f600",
        "Lorem ipsum dolor sit amet.",
    ],
)
def test_a_text_without_a_known_word_says_nothing(text: str) -> None:
    assert not is_known_text(text)
    assert set(label_report(text).values()) == {None}


@pytest.mark.parametrize("text", ["Normal.", "No interval change.", "Negative CXR", "Large pericardial effusion."])
def test_a_text_with_a_known_word_may_be_normal(text: str) -> None:
    assert is_known_text(text)
    assert label_report(text)[NO_FINDING] == 1


@given(st.lists(st.sampled_from([text for text, _ in SENTENCES]), min_size=1, max_size=5), st.randoms())
def test_order_of_sentences_and_case_do_not_matter(sentences: list[str], random: object) -> None:
    ended = [text if text.endswith(".") else text + "." for text in sentences]
    shuffled = ended[::-1]
    assert label_report(" ".join(ended)) == label_report(" ".join(shuffled).upper())


@given(st.text(max_size=200))
def test_any_text_gets_all_classes(text: str) -> None:
    labels = label_report(text)
    assert tuple(labels) == CHEXPERT_CLASSES
    assert set(labels.values()) <= {1, 0, -1, None}


def test_uncertain_counts_as_asked() -> None:
    k = CHEXPERT_CLASSES.index("Edema")
    texts = ["Possible edema.", "Edema.", "No edema."]
    assert label_matrix(texts)[:, k].tolist() == [True, True, False]
    assert label_matrix(texts, uncertain="negative")[:, k].tolist() == [False, True, False]
    assert label_matrix([]).shape == (0, 14)
    assert label_matrix(texts).dtype == np.bool_


@pytest.mark.data
def test_finds_what_annotators_indexed(data_dir: Path) -> None:
    from xgem.data.study import Study
    from xgem.eval.labeller_check import check_labeller

    with (data_dir / "openi" / "reports.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    dropped = {"", "No Indexing", "Technical Quality of Image Unsatisfactory"}
    studies = [
        Study(
            id=row["uid"],
            subject=row["uid"],
            split=row["split"],
            findings=row["findings"],
            impression=row["impression"],
            source="openi",
            labels=tuple(sorted({part.strip() for part in row["Problems"].split(";")} - dropped)),
        )
        for row in rows[:500]
    ]
    classes = check_labeller(studies)["classes"]
    for name in ("No Finding", "Cardiomegaly", "Atelectasis", "Lung Opacity", "Pleural Effusion"):
        assert classes[name]["precision"] > 0.75, name
        assert classes[name]["recall"] > 0.9, name


@pytest.mark.data
def test_wrapped_reports_keep_their_labels(data_dir: Path) -> None:
    with (data_dir / "openi" / "reports.csv").open(encoding="utf-8") as file:
        reports = [f"{row['findings']} {row['impression']}" for row in csv.DictReader(file) if row["split"] == "val"]
    assert len(reports) > 300
    changed = [text for text in reports if label_report("\n".join(textwrap.wrap(text, 79))) != label_report(text)]
    assert changed == []
