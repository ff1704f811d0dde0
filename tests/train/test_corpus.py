"""The texts of a study, what is known of its patient, and how descriptions and studies are varied in training."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xgem.configs.preset import Preset
from xgem.data.manifest import Manifest
from xgem.data.prepare import PreparedImages
from xgem.data.study import Study
from xgem.labels.sentences import written_sentences
from xgem.train.corpus import Corpus, balanced, studies_by_class, studies_by_field, vary
from xgem.train.share import fixed_rngs
from xgem.types import DataError

FINDINGS, IMPRESSION = "The heart is large. No effusion.", "Cardiomegaly."
LABELS = ("Cardiomegaly", "Edema")
IMAGES = tuple({"frontal": tuple(map(Path, files))} for files in (("a.png", "b.png"), ("c.png",)))
STUDIES = (
    Study("a", "a", "train", IMAGES[0], FINDINGS, IMPRESSION, LABELS, sex="F", age=61.0),
    Study("b", "b", "train", IMAGES[1], impression=IMPRESSION, severity=0.0),
    Study("c", "c", "train"),
)  # fmt: skip


def corpus(**changes: Any) -> Corpus:
    images = PreparedImages(torch.zeros(3, 4, 4, dtype=torch.uint8), np.array([0, 2, 3, 3], np.uint32), "toy")
    return Corpus(STUDIES, images, **{"sections": ("findings", "impression"), **changes})


def test_rows_are_those_of_the_study_and_view() -> None:
    assert [corpus().rows(index, "frontal") for index in range(3)] == [[0, 1], [2], []]
    assert corpus().rows(0, "lateral") == []


def test_a_report_is_complete_with_all_of_its_sections() -> None:
    assert [corpus().complete(index) for index in range(3)] == [True, False, False]
    assert [corpus(sections=("impression",)).complete(index) for index in range(3)] == [True, True, False]


def test_a_study_is_described_by_each_of_its_distinct_texts() -> None:
    plain = corpus()
    whole = f"Findings: {FINDINGS} Impression: {IMPRESSION}"
    assert [plain.report(index) for index in range(3)] == [whole, IMPRESSION, ""]
    assert plain.texts(0) == [whole, IMPRESSION, FINDINGS, "Cardiomegaly. Pulmonary edema."]
    assert plain.texts(1) == [IMPRESSION]
    assert plain.texts(2) == []
    prompts = corpus(prompt_sections=("findings",))
    assert [prompts.texts(index) for index in range(3)] == [[FINDINGS], [], []]
    assert corpus(prompt_sections=("impression",)).texts(1) == [IMPRESSION]


def test_what_is_known_of_the_patient_comes_with_each_text_and_alone_in_all_parts() -> None:
    joined = corpus(joined=frozenset({"demographics", "severity"}), prompt_sections=("impression",))
    assert [joined.known(index) for index in range(3)] == [{"sex": "F", "age": 61}, {"severity": 0.0}, {}]
    assert joined.texts(0) == [
        IMPRESSION,
        f"sex:Female, age:61.0. {IMPRESSION}",
        "sex:Female.",
        "age:61.0.",
        "sex:Female, age:61.0.",
    ]
    assert joined.texts(2) == []
    assert corpus(joined=frozenset({"severity"})).known(0) == {}
    assert corpus().known(1) == {}


def test_a_text_can_come_with_all_that_is_known_alone() -> None:
    fields: dict[str, Any] = {"joined": frozenset({"demographics", "severity"}), "prompt_sections": ("impression",)}
    always = corpus(prefix="always", **fields)
    assert always.texts(0) == [f"sex:Female, age:61.0. {IMPRESSION}"]
    assert always.texts(1) == [f"severity:0. {IMPRESSION}"]
    assert always.texts(2) == []
    scored = replace(always, studies=(replace(STUDIES[2], severity=4.0),))
    assert scored.texts(0) == ["severity:4."]
    assert corpus(prefix="always").texts(0) == corpus().texts(0)  # the preset adds nothing
    assert always.fingerprint() != corpus(**fields).fingerprint()


def test_without_captions_a_study_is_described_by_its_report_alone() -> None:
    whole = f"Findings: {FINDINGS} Impression: {IMPRESSION}"
    assert corpus(captions="none").texts(0) == [whole, IMPRESSION, FINDINGS]
    impressions = corpus(captions="none", prompt_sections=("impression",))
    assert [impressions.texts(index) for index in range(3)] == [[IMPRESSION], [IMPRESSION], []]
    labelled = replace(impressions, studies=(replace(STUDIES[2], labels=LABELS),))
    assert labelled.texts(0) == []
    assert replace(labelled, captions="labels").texts(0) == ["Cardiomegaly. Pulmonary edema."]


def test_a_preset_says_how_texts_are_made(toy: Path, debug_preset: Preset) -> None:
    changes = {"captions": "none", "prefix": "always", "prompt_sections": ("findings",)}
    made = Corpus.without_images(Manifest.read(toy), "train", debug_preset.model_copy(update=changes))
    assert {name: getattr(made, name) for name in changes} == changes
    assert not {"captions", "prefix"} & debug_preset.model_dump().keys()  # what was recorded stays equal


def test_the_fingerprint_follows_texts_images_and_studies() -> None:
    base = corpus()
    changed = [
        corpus(sections=("impression",)),
        corpus(joined=frozenset({"severity"})),
        Corpus(STUDIES, replace(base.images, sha256="other"), base.sections),
        Corpus(STUDIES[:2], base.images, base.sections),
        Corpus((replace(STUDIES[0], id="z"), *STUDIES[1:]), base.images, base.sections),
    ]
    assert base.fingerprint() == corpus().fingerprint()
    assert len({made.fingerprint() for made in (base, *changed)}) == 6


def test_studies_are_grouped_by_what_is_known_of_them() -> None:
    joined = corpus(joined=frozenset({"demographics", "severity"}))

    def by_field(usable: list[int], share: float) -> list[list[int]]:
        return [group.tolist() for group in studies_by_field(joined, np.array(usable, np.int32), share)]

    assert by_field([0, 1, 2], 0.5) == [[0], [1], [0]]  # age, severity, sex
    assert by_field([2, 1], 0.5) == [[1]]
    assert by_field([2], 0.0) == []
    with pytest.raises(DataError, match="no age, sex or score is known"):
        by_field([2], 0.5)


def test_a_variant_has_some_of_the_sentences_in_any_order() -> None:
    rng, text = random.Random(0), "One. Two. Three. Four."
    assert vary("One.", rng, keep=0.0) == "One."
    assert {vary(text, rng, keep=0.0) for _ in range(60)} == {"One.", "Two.", "Three.", "Four."}
    assert {vary("One. Two.", rng, keep=0.0) for _ in range(60)} == {"One.", "Two."}
    whole = [vary(text, rng, keep=1.0) for _ in range(300)]
    assert {tuple(sorted(written_sentences(one))) for one in whole} == {("Four.", "One.", "Three.", "Two.")}
    assert len(set(whole)) == 24  # every order
    kept = [written_sentences(vary(text, rng)) for _ in range(2000)]
    assert all(len(set(one)) == len(one) >= 1 for one in kept)
    assert sum(map(len, kept)) / 8000 == pytest.approx(0.7, abs=0.03)
    assert vary(text, random.Random(5)) == vary(text, random.Random(5), keep=0.7)


def test_a_share_of_the_studies_is_drawn_class_by_class() -> None:
    rng = random.Random(0)
    shares = {("Cardiomegaly",): 30, ("Cardiomegaly", "Pneumothorax"): 10, ("Pulmonary Edema",): 9, ("normal",): 200}
    made_of = [labels for labels, count in shares.items() for _ in range(count)]
    labelled = (Study(str(k), str(k), "train", labels=labels, source="openi") for k, labels in enumerate(made_of))
    studies = Corpus(tuple(labelled), PreparedImages.none(len(made_of)), ("impression",))
    usable = np.arange(len(studies.studies), dtype=np.int32)
    groups = studies_by_class(studies, usable)
    assert [len(group) for group in groups] == [40, 200, 10]  # cardiomegaly, no finding, pneumothorax; no edema
    assert [len(group) for group in studies_by_class(studies, usable[30:])] == [10, 200, 10]
    assert balanced([-1], groups, 0.0, [rng]) == [-1]
    assert rng.random() == random.Random(0).random()  # nothing was drawn
    assert balanced([-1], [], 1.0, [rng]) == [-1]  # of data without labels
    made = balanced([-1] * 6000, groups, 0.5, fixed_rngs(0, count=6000))
    assert made.count(-1) == pytest.approx(3000, abs=200)
    with_pneumothorax = sum(index in groups[2] for index in made)
    assert with_pneumothorax == pytest.approx(1000 + 1000 / 4, abs=150)


def annotated(**changes: Any) -> Corpus:
    terms = ("Pleural Effusion/left/small", "Cardiomegaly/mild")
    studies = (
        replace(STUDIES[0], qualified=terms, source="openi"),
        replace(STUDIES[1], labels=("normal",), source="openi"),
        STUDIES[2],
    )
    return replace(corpus(**changes), studies=studies)


def test_captions_with_side_and_size_are_off_unless_asked_for() -> None:
    assert [annotated().texts(index) for index in range(3)] == [
        corpus().texts(0),
        [IMPRESSION, "No acute cardiopulmonary abnormality."],
        [],
    ]
    for seed in range(20):
        rng, same = random.Random(seed), random.Random(seed)
        assert annotated().draw_text(0, rng) == same.choice(corpus().texts(0))
        assert rng.random() == same.random()  # nothing else was drawn


def test_captions_with_side_and_size_join_the_texts() -> None:
    asked = annotated(captions="qualified")
    made = asked.texts(0)
    assert made[:4] == corpus().texts(0)
    assert made[4] == "Small left pleural effusion. Mild cardiomegaly."
    assert len(made) == 7
    assert made == asked.texts(0)
    assert all("left" in text.lower() and "small" in text.lower() for text in made[4:])
    assert asked.texts(2) == []
    assert asked.draw_text(2, random.Random(0)) is None
    only = annotated(captions="qualified", prompt_sections=("findings",)).texts(0)
    assert only[:2] == [FINDINGS, made[4]]
    assert asked.fingerprint() != annotated().fingerprint()


def test_each_use_draws_another_wording() -> None:
    asked = annotated(captions="qualified", joined=frozenset({"demographics"}))
    rng = random.Random(0)
    drawn = Counter(asked.draw_text(0, rng) for _ in range(600))
    fixed = set(asked.texts(0))
    fresh = [text for text in drawn if text not in fixed]
    assert len(fresh) > 100
    assert all("left" in str(text).lower() for text in fresh)
    assert any(str(text).startswith("sex:Female, age:61.0. ") for text in fresh)
    assert sum(drawn[text] for text in fixed if asked.worded(0)[0] not in text) > 200


def test_a_normal_study_without_a_report_is_not_said_to_have_what_radiologists_write() -> None:
    said, kept = "No finding.", "No acute cardiopulmonary abnormality."
    for captions in ("labels", "qualified"):
        whole = replace(corpus(captions=captions), studies=(
            replace(STUDIES[2], labels=("No Finding",), source="nih"),
            replace(STUDIES[1], labels=("normal",), source="openi"),
            replace(STUDIES[2], labels=("Cardiomegaly",), source="nih"),
        ))  # fmt: skip
        assert said in whole.texts(0)
        assert kept in whole.texts(1)
        assert "Cardiomegaly." in whole.texts(2)
        rng = random.Random(0)
        drawn = [{whole.draw_text(index, rng) for _ in range(300)} for index in range(3)]
        assert [kept in texts for texts in drawn] == [False, True, False]
        assert [said in texts for texts in drawn] == [True, False, False]
