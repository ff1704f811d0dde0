"""Captions of findings with side, place and size: English, many, true to the annotation, and the same for a seed."""

from __future__ import annotations

import csv
import itertools
import random
from pathlib import Path

import pytest

from xgem.data.captions import NORMAL_CAPTION
from xgem.data.wordings import absent_classes, caption, denial, random_caption, wordings
from xgem.labels.qualified import QualifiedFinding, qualified_terms
from xgem.labels.rules import label_report
from xgem.labels.vocabulary import CHEXPERT_CLASSES, NO_FINDING, classes_of

CANONICAL = {
    "Pleural Effusion/left/small": "Small left pleural effusion.",
    "Pleural Effusion/bilateral": "Bilateral pleural effusions.",
    "Opacity/lung/base/left/streaky": "Streaky opacity in the left lung base.",
    "Opacity/lung/middle lobe/right": "Opacity in the right middle lobe.",
    "Pulmonary Atelectasis/base/bilateral/mild": "Mild atelectasis in both lung bases.",
    "Nodule/lung/upper lobe/right/multiple": "Multiple nodules in the right upper lobe.",
    "Diaphragm/right/elevated/mild": "Mild elevation of the right hemidiaphragm.",
    "Diaphragm/flattened": "Flattening of the diaphragm.",
    "Lung/hypoinflation": "Hypoinflation of the lungs.",
    "Lung, Hyperlucent/left": "Hyperlucency of the left lung.",
    "Aorta, Thoracic/tortuous": "Tortuosity of the thoracic aorta.",
    "Thoracic Vertebrae/degenerative/mild": "Mild degenerative changes of the thoracic spine.",
    "Calcinosis/lung/hilum/lymph nodes/left": "Calcification of the left hilar lymph nodes.",
    "Fractures, Bone/ribs/left/healed": "Healed fracture of the left ribs.",
    "Catheters, Indwelling/right": "Right indwelling catheter.",
    "Markings/lung/interstitial/chronic": "Increased chronic interstitial markings in the lung.",
    "Shift/mediastinum/right": "Shift of the mediastinum to the right.",
    "Surgical Instruments/abdomen/right": "Surgical material in the right abdomen.",
    "Scoliosis/thoracic vertebrae/right/mild": "Mild right scoliosis of the thoracic spine.",
    "Cardiomegaly/borderline": "Borderline cardiomegaly.",
    "Lung/azygos lobe": "Abnormality of the azygos lobe.",
}


@pytest.mark.parametrize(("term", "expected"), CANONICAL.items())
def test_the_canonical_wording(term: str, expected: str) -> None:
    assert wordings(QualifiedFinding.parse(term))[0] == expected
    assert caption([term, term], ["Opacity"], "openi") == expected


def test_one_finding_has_many_wordings() -> None:
    made = wordings(QualifiedFinding.parse("Pleural Effusion/left/small"))
    for wanted in (
        "Small left pleural effusion.",
        "Pleural effusion on the left, small.",
        "There is a small left-sided pleural effusion.",
        "A small pleural effusion on the left is seen.",
    ):
        assert wanted in made
    assert len(made) == len(set(made)) >= 12
    assert all("left" in one.lower() and "small" in one.lower() for one in made)
    streaky = wordings(QualifiedFinding.parse("Opacity/lung/base/left/streaky"))
    assert "In the left lung base, there is a streaky opacity." in streaky
    raised = wordings(QualifiedFinding.parse("Diaphragm/right/elevated/mild"))
    assert "Mildly elevated right hemidiaphragm." in raised
    assert "There is an enlarged heart." in wordings(QualifiedFinding.parse("Heart/enlarged"))
    assert "There are multiple nodules." in wordings(QualifiedFinding.parse("Nodule/multiple"))


def test_a_random_caption_is_a_wording_of_every_finding_and_follows_the_seed() -> None:
    terms = ["Pleural Effusion/left/small", "Cardiomegaly/mild"]
    told = (terms, ["Pleural Effusion", "Cardiomegaly"], "openi")
    known = [set(wordings(QualifiedFinding.parse(term))) for term in terms]
    seen = set()
    for seed in range(200):
        text = random_caption(*told, random.Random(seed))
        assert text == random_caption(*told, random.Random(seed))
        sentences = {one if one.endswith(".") else f"{one}." for one in text.split(". ")}
        assert all(sentences & of_term for of_term in known)
        rest = sentences - known[0] - known[1]
        assert len(rest) <= 1
        assert not any(word in one.lower() for one in rest for word in ("effusion", "cardiomegaly"))
        seen.add(text)
    assert len(seen) > 100
    denying = sum(len(random_caption(*told, random.Random(seed)).split(". ")) == 3 for seed in range(600))
    assert denying / 600 == pytest.approx(0.3, abs=0.06)


def test_a_normal_study_denies_what_its_annotators_would_have_named() -> None:
    assert caption([], ["normal"], "openi") == NORMAL_CAPTION
    made = [random_caption([], ["normal"], "openi", random.Random(seed)) for seed in range(300)]
    assert made.count(NORMAL_CAPTION) / 300 == pytest.approx(1 / 3, abs=0.08)
    assert {"No pleural effusion.", "There is no pneumothorax."} <= {
        f"{one.rstrip('.')}." for text in made for one in text.split(". ")
    }
    for text in made:
        labels = label_report(text)
        assert all(labels[name] in (0, None) for name in CHEXPERT_CLASSES if name != NO_FINDING)
        assert labels[NO_FINDING] == 1


def test_what_is_not_annotated_is_not_denied() -> None:
    assert absent_classes([], "openi") == ()
    assert absent_classes(["normal"], "of my own") == ()
    assert random_caption([], ["normal"], "of my own", random.Random(0)) == NORMAL_CAPTION
    assert (
        caption([], ["Cardiomegaly"], "openi") == random_caption([], ["Cardiomegaly"], "openi", random.Random(0)) == ""
    )
    absent = absent_classes(["Pleural Effusion", "Costophrenic Angle"], "openi")
    assert "Pneumothorax" in absent
    assert not {"Pleural Effusion", "Pleural Other", "Support Devices", NO_FINDING} & {*absent}


@pytest.mark.parametrize("name", [name for name in CHEXPERT_CLASSES if name not in (NO_FINDING, "Support Devices")])
def test_a_denial_is_read_as_one(name: str) -> None:
    made = {denial(name), *(denial(name, random.Random(seed)) for seed in range(40))}
    assert len(made) == 4
    assert all(label_report(text)[name] == 0 for text in made)


@pytest.mark.data
def test_real_captions_state_what_the_annotators_do(data_dir: Path) -> None:
    with (data_dir / "openi/reports.csv").open(encoding="utf-8-sig", newline="") as stream:
        terms = sorted({term for row in csv.DictReader(stream) for term in qualified_terms(row["MeSH"].split(";"))})
    assert len(terms) > 1500
    stated = denied = sided = 0
    for term in terms:
        finding = QualifiedFinding.parse(term)
        made = wordings(finding)
        for text in made:
            assert text[0].isupper()
            assert text.endswith(".")
            assert text.count(".") == 1
            assert "  " not in text
            assert "_" not in text
            words = text.lower().rstrip(".").replace(",", "").replace("-sided", "").split()
            assert not any(first == second for first, second in itertools.pairwise(words)), text
            if finding.side in ("left", "right"):
                sided += 1
                other = {"left": "right", "right": "left"}[finding.side]
                if finding.places != ("middle lobe",) and "middle lobe" not in finding.places:
                    assert finding.side in words, text
                    assert other not in words, text
            for name in classes_of(finding.name):
                label = label_report(text)[name]
                stated += label in (1, -1)
                denied += label == 0
    assert sided > 5000
    assert denied == 0
    assert stated > 3000
