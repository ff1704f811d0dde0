"""One table of terms: every use agrees with it, and what is unknown is never 0."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from xgem.cli import main
from xgem.cohort.collect import SOURCE as COHORT
from xgem.data import captions
from xgem.data.annotation_files import _CLASS_ALIASES
from xgem.data.annotations import BOX_CLASSES
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.data.set_files import read_set
from xgem.data.sources import nih, openi, segmentations
from xgem.data.study import Study
from xgem.eval.families.control import box_class
from xgem.eval.labeller_check import check_labeller
from xgem.labels.vocabulary import (
    CHEXPERT_5,
    CHEXPERT_CLASSES,
    CLASS_SETS,
    NO_FINDING,
    NOT_FINDINGS,
    PARENTS,
    SOURCES,
    TERMS,
    XGEM_10,
    Term,
    annotated_classes,
    annotated_labels,
    annotated_matrix,
    classes_of,
    count_labels,
    is_affirmation,
    is_silent,
    named,
    plain,
)

# A term once for all sources that take it for the same and annotate the same classes
EVERY = list(
    {
        (plain(term), meant, annotated_classes(source)): (source, term)
        for source, terms in SOURCES.items()
        for term, meant in terms.items()
    }.values()
)


def study(*labels: str, source: str = "openi", text: str = "") -> Study:
    return Study(id="a", subject="a", split="val", impression=text, labels=labels, source=source)


# ------------------------------------------------------------------------------------------------------- the table


def test_the_table_names_known_classes_alone() -> None:
    named = {name for term in TERMS.values() for name in (*term.affirms, *term.leaves_open)}
    assert named <= set(CHEXPERT_CLASSES)
    assert all(set(classes) <= set(CHEXPERT_CLASSES) for classes in (*CLASS_SETS.values(), CHEXPERT_5, XGEM_10))
    assert set(PARENTS) | set(PARENTS.values()) <= set(CHEXPERT_CLASSES)
    assert all(not set(term.affirms) & set(term.leaves_open) for term in TERMS.values())


@pytest.mark.parametrize("source", SOURCES)
def test_a_term_means_the_same_in_every_source(source: str) -> None:
    assert {term: TERMS[plain(term)] for term in SOURCES[source]} == SOURCES[source]


def test_sources_are_those_that_manifests_name() -> None:
    assert {openi.SOURCE, nih.SOURCE, COHORT} < set(SOURCES)
    assert segmentations.SOURCE not in SOURCES  # its terms are patients' diagnoses, not what the image shows
    assert annotated_classes("openi") == set(CHEXPERT_CLASSES) - {"Enlarged Cardiomediastinum"}
    absent = {"Enlarged Cardiomediastinum", "Fracture", "Support Devices"}
    assert annotated_classes("nih") == set(CHEXPERT_CLASSES) - absent
    assert annotated_classes("xgem") == annotated_classes("chexpert") == set(CHEXPERT_CLASSES)
    assert annotated_classes("") == frozenset()
    # Sets of one finding, and of devices, say nothing of others
    assert annotated_classes("siim-acr") == annotated_classes("candid-ptx") == annotated_classes("ralo") == frozenset()
    assert annotated_classes("object-cxr") == frozenset()
    assert annotated_classes("ranzcr-clip") == {"Support Devices"}
    assert annotated_classes("chestx-det") - annotated_classes("chestx-det10") == {"Cardiomegaly", "Pleural Other"}
    assert annotated_classes("bimcv-covid19") == annotated_classes("padchest")


# --------------------------------------------------------------------------------------------- every use of a term


@pytest.mark.parametrize(("source", "term"), EVERY)
def test_every_use_agrees(source: str, term: str, tmp_path: Path) -> None:
    """Sets, the classifier's labels and the check of the labeller give one study of this term the same labels."""
    meant = SOURCES[source][term]
    labels = annotated_labels([term], source)
    assert {name for name, value in labels.items() if value == 1} == set(meant.affirms)
    for name in meant.leaves_open:
        assert name not in labels

    row = annotated_matrix([study(term, source=source)])[0]
    assert {name: value for name, value in zip(CHEXPERT_CLASSES, row, strict=True) if not math.isnan(value)} == labels

    written = Row(study="a", subject="a", split="val", impression="Text.", labels=(term,), source=source)
    Manifest((written,), tmp_path).write(tmp_path / "m.jsonl")
    assert read_set(tmp_path / "m.jsonl", labels="file").items[0].labels == labels

    checked = check_labeller([study(term, source=source, text="Text.")])["classes"]
    assert set(checked) == set(meant.affirms)
    assert {one["annotated"] for one in checked.values()} <= {1}


@pytest.mark.parametrize("term", TERMS)
def test_captions_call_normal_what_the_table_does(term: str) -> None:
    assert (captions.caption_from_labels([term]) == captions.NORMAL_CAPTION) == (NO_FINDING in classes_of(term))


@pytest.mark.parametrize("term", NOT_FINDINGS)
def test_terms_that_say_nothing(term: str) -> None:
    assert is_silent(term)
    assert plain(term) not in TERMS
    assert openi.labels_from_problems([term]) == ()
    assert all(annotated_labels([term], source) == {} for source in (*SOURCES, ""))
    assert annotated_labels([term, "Nodule"], "nih") == annotated_labels(["Nodule"], "nih")


@pytest.mark.parametrize("name", BOX_CLASSES)
def test_boxes_stand_for_a_class(name: str) -> None:
    assert (box_class(name),) == classes_of(name)
    assert box_class(name) in XGEM_10


@pytest.mark.parametrize(("alias", "name"), _CLASS_ALIASES.items())
def test_aliases_of_boxes_stand_for_the_same_class(alias: str, name: str) -> None:
    assert classes_of(alias) == classes_of(name) == (box_class(name),)


# ------------------------------------------------------------------------------------------------ present or absent


def test_what_annotators_do_not_name_is_absent_if_they_have_a_term_for_it() -> None:
    labels = annotated_labels(["Effusion"], "nih")
    assert labels["Pleural Effusion"] == 1
    assert labels["Edema"] == labels["Pneumothorax"] == labels[NO_FINDING] == 0
    assert set(labels) == annotated_classes("nih")
    assert "Support Devices" not in labels


def test_a_source_that_is_not_known_says_what_it_names_alone() -> None:
    assert annotated_labels(["Edema"], "elsewhere") == {NO_FINDING: 0, "Edema": 1}
    assert annotated_labels(["No Finding"], "elsewhere") == {NO_FINDING: 1}
    assert annotated_labels(["Edema"], "chexpert")["Fracture"] == 0


@pytest.mark.parametrize("names", [[], ["No Indexing"], ["Technical Quality of Image Unsatisfactory"], ["Glimmer"]])
def test_nothing_is_known_of_a_study_without_findings(names: list[str]) -> None:
    assert annotated_labels(names, "openi") == {}


def test_a_term_that_no_table_has_may_mean_any_class() -> None:
    assert annotated_labels(["Glimmer", "Nodule"], "openi") == {NO_FINDING: 0, "Lung Lesion": 1}
    assert annotated_labels(["Glimmer", "normal"], "openi") == {}


def test_no_finding() -> None:
    assert annotated_labels(["normal"], "openi")[NO_FINDING] == 1
    assert annotated_labels(["normal", "Tube, Inserted"], "openi")[NO_FINDING] == 1
    assert annotated_labels(["normal", "Spine"], "openi")[NO_FINDING] == 0
    assert annotated_labels(["Calcinosis"], "openi")[NO_FINDING] == 0
    assert annotated_labels(["Hernia"], "nih")[NO_FINDING] == 0
    # Devices are no disease, and nobody has called the study normal
    only = annotated_labels(["Tube, Inserted"], "openi")
    assert NO_FINDING not in only
    assert (only["Support Devices"], only["Edema"]) == (1, 0)


@pytest.mark.parametrize(
    ("term", "unknown"),
    [
        ("Pneumonia", {"Consolidation", "Lung Opacity"}),
        ("Consolidation", {"Lung Opacity"}),
        ("Nodule", {"Lung Opacity"}),
        ("Atelectasis", {"Lung Opacity"}),
        ("Edema", {"Lung Opacity"}),
        ("Infiltration", set[str]()),
        ("Effusion", set[str]()),
    ],
)
def test_what_is_wider_than_a_finding_is_unknown(term: str, unknown: set[str]) -> None:
    labels = annotated_labels([term], "nih")
    assert annotated_classes("nih") - set(labels) == unknown
    assert annotated_labels([term, "Infiltration"], "nih")["Lung Opacity"] == 1


def test_a_source_that_denies_says_what_it_says_alone() -> None:
    """CheXpert's data set and MIMIC-CXR have 1, 0, -1 and blank: a blank is unknown, beside however many zeros."""
    for source in ("chexpert-v1", "mimic-cxr"):
        labels = annotated_labels(["Edema", "no Pneumothorax", "possible Pneumonia"], source)
        assert labels == {NO_FINDING: 0, "Edema": 1, "Pneumothorax": 0}
        assert annotated_labels([NO_FINDING, "no Edema"], source) == {NO_FINDING: 1, "Edema": 0}
        assert annotated_labels(["no Edema"], source) == {"Edema": 0}
        assert annotated_labels(["Support Devices", "Abnormal"], source) == {NO_FINDING: 0, "Support Devices": 1}
        # What is wider than a finding stays unknown: an edema is an opacity
        assert "Lung Opacity" not in annotated_labels(["Edema", "no Lung Opacity"], source)
    assert annotated_labels(["Edema"], "chexpert")["Fracture"] == 0


def test_labels_by_their_own_names() -> None:
    terms = ("Edema", "no Fracture", "possible Pneumonia")
    assert [named(name, terms, "mimic-cxr") for name in ("Edema", "Fracture")] == [1, 0]
    assert all(math.isnan(named(name, terms, "mimic-cxr")) for name in ("Pneumonia", "Atelectasis"))
    assert named("Mass", ("Edema",), "nih") == 0
    assert math.isnan(named("Mass", (), "nih"))
    assert [name for name in terms if is_affirmation(name)] == ["Edema"]


def test_readers_who_do_not_agree_leave_a_class_open() -> None:
    labels = annotated_labels(["Pleural effusion", "possible Nodule/Mass"], "vindr-cxr")
    assert labels["Pleural Effusion"] == 1
    assert labels["Pneumothorax"] == labels["Fracture"] == 0
    assert "Lung Lesion" not in labels
    assert "Support Devices" not in labels  # no term for them


def test_padchest_keeps_open_what_its_terms_do_not_decide() -> None:
    labels = annotated_labels(["costophrenic angle blunting", "sternotomy", "unchanged"], "padchest")
    assert labels["Pneumothorax"] == labels[NO_FINDING] == 0
    assert not {"Pleural Effusion", "Pleural Other", "Support Devices"} & labels.keys()
    assert annotated_labels(["normal", "exclude"], "padchest")[NO_FINDING] == 1


def test_case_blanks_and_underscores_do_not_matter() -> None:
    assert plain(" Pleural_Thickening ") == plain("pleural  thickening")
    for written in ("Pleural_Thickening", "Pleural Thickening", "pleural thickening"):
        assert annotated_labels([written], "nih")["Pleural Other"] == 1


def test_one_term_may_affirm_two_classes_and_leave_others_open() -> None:
    labels = annotated_labels(["Hydropneumothorax"], "openi")
    assert labels["Pneumothorax"] == labels["Pleural Effusion"] == 1
    assert "Cardiomegaly" not in annotated_labels(["Cardiac Shadow"], "openi")
    assert annotated_labels(["Cardiac Shadow", "Cardiomegaly"], "openi")["Cardiomegaly"] == 1
    assert Term() == TERMS["spine"]


def test_the_matrix_and_its_counts() -> None:
    matrix = annotated_matrix([study("normal"), study("Edema", source="nih"), study()])
    assert matrix.shape == (3, 14)
    assert np.isnan(matrix[2]).all()
    counts = count_labels(matrix)
    assert counts["Edema"] == (1, 1, 1)
    assert counts["Enlarged Cardiomediastinum"] == (0, 0, 3)
    assert annotated_matrix([]).shape == (0, 14)
    assert annotated_matrix([study("normal")], ["Edema", NO_FINDING]).tolist() == [[0, 1]]


def test_the_counts_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        Row(study=name, subject=name, split="val", impression="Text.", labels=labels, source="nih")
        for name, labels in (("a", ("Pleural Thickening", "Edema")), ("b", ("No Finding",)), ("c", ()))
    ]
    Manifest(tuple(rows), tmp_path).write(tmp_path / "m.jsonl")
    assert main(["data", "check", str(tmp_path / "m.jsonl")]) == 0
    lines = {line[:28].strip(): line[28:].split() for line in capsys.readouterr().out.splitlines()}
    assert lines["Pleural Other"] == ["1", "1", "1"]
    assert lines["Lung Opacity"] == ["0", "1", "2"]
    assert lines["Fracture"] == ["0", "0", "3"]
    assert main(["data", "check", str(tmp_path / "m.jsonl"), "--json"]) == 0
    counted = json.loads(capsys.readouterr().out)["labels"]
    assert counted["Lung Opacity"] == {"present": 0, "absent": 1, "unknown": 2}


def test_labels_import_types_alone(project: Path) -> None:
    for file in (project / "xgem" / "labels").glob("*.py"):
        imported = re.findall(r"^\s*(?:from|import) (xgem[\w.]*)", file.read_text(encoding="utf-8"), re.MULTILINE)
        assert all(name == "xgem.types" or name.startswith("xgem.labels") for name in imported), file.name


# ------------------------------------------------------------------------------------------------------- real studies


@pytest.mark.data
def test_open_i(data_dir: Path, tmp_path: Path) -> None:
    """Every term of its indexers is in the table; pleural thickening and densities are no negatives."""
    studies = openi.prepare(data_dir / "openi", tmp_path / "m.parquet").studies()
    assert {plain(label) for one in studies for label in one.labels} <= set(map(plain, SOURCES["openi"]))
    counts = count_labels(annotated_matrix(studies))
    assert counts == {
        "No Finding": (1227, 2089, 134),
        "Enlarged Cardiomediastinum": (0, 0, 3450),
        "Cardiomegaly": (304, 3022, 124),
        "Lung Lesion": (109, 3245, 96),
        "Lung Opacity": (571, 2416, 463),
        "Edema": (78, 3280, 92),
        "Consolidation": (27, 3305, 118),
        "Pneumonia": (37, 3321, 92),
        "Atelectasis": (293, 3056, 101),
        "Pneumothorax": (22, 3336, 92),
        "Pleural Effusion": (133, 3179, 138),
        "Pleural Other": (45, 3092, 313),
        "Fracture": (80, 3190, 180),
        "Support Devices": (212, 3128, 110),
    }
    read = {item.id: item.labels for item in read_set(tmp_path / "m.parquet", labels="file").items}
    for name, terms in (
        ("Pleural Other", {"Thickening"}),
        ("Lung Opacity", {"Opacity", "Airspace Disease", "Infiltrate", "Density"}),
        ("Pneumothorax", {"Pneumothorax", "Hydropneumothorax", "Hemopneumothorax"}),
    ):
        there = [one.id for one in studies if terms & set(one.labels)]
        assert {read[name_of][name] for name_of in there if name_of in read} == {1}
        assert len(there) == counts[name][0]


@pytest.mark.data
def test_nih(data_dir: Path, tmp_path: Path) -> None:
    studies = nih.prepare(data_dir / "nih", tmp_path / "m.parquet").studies()
    assert {plain(label) for one in studies for label in one.labels} <= set(map(plain, SOURCES["nih"]))
    counts = count_labels(annotated_matrix(studies))
    assert counts["Pleural Other"] == (97, 1608, 0)
    assert counts["Lung Opacity"] == (318, 818, 569)
    assert counts["Support Devices"] == counts["Fracture"] == (0, 0, 1705)
    with (data_dir / "nih_boxes" / "labels.csv").open(encoding="utf-8") as stream:
        named = {plain(label) for row in csv.DictReader(stream) for label in row["labels"].split("|")}
    assert named <= set(map(plain, SOURCES["nih"]))


@pytest.mark.data
def test_diagnoses_of_patients_are_no_findings(data_dir: Path, tmp_path: Path) -> None:
    studies = segmentations.prepare(data_dir / "segmentations", tmp_path / "m.parquet").studies()
    said = [annotated_labels(one.labels, one.source) for one in studies]
    assert {tuple(labels.items()) for labels in said} == {(), ((NO_FINDING, 1.0),)}
