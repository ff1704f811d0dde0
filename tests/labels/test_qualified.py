"""Annotators' terms with qualifiers: sides, places and sizes, and what is no finding."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgem.labels.qualified import EXTENTS, MANNERS, PLACES, SIDES, STATES, QualifiedFinding, qualified_terms


@pytest.mark.parametrize(
    ("term", "finding"),
    [
        ("Pleural Effusion/left/small", QualifiedFinding("pleural effusion", "left", ("small",))),
        (
            "Opacity/lung/base/bilateral/streaky/mild",
            QualifiedFinding("opacity", "bilateral", ("mild",), ("streaky",), (), ("lung", "base")),
        ),
        ("Aorta, Thoracic/tortuous", QualifiedFinding("aorta, thoracic", states=("tortuous",))),
        ("Scoliosis /  thoracic  Vertebrae/", QualifiedFinding("scoliosis", places=("thoracic vertebrae",))),
        ("Nodule/left/right/left", QualifiedFinding("nodule", "bilateral")),
        ("Mass/spiculated/lung", QualifiedFinding("mass", places=("lung",), unread=("spiculated",))),
    ],
)
def test_a_term_is_a_heading_with_qualifiers(term: str, finding: QualifiedFinding) -> None:
    assert QualifiedFinding.parse(term) == finding


@pytest.mark.parametrize("term", ["", " ", "/left", " /left/small"])
def test_a_term_needs_a_heading(term: str) -> None:
    with pytest.raises(ValueError, match="expected a heading and its qualifiers, like 'Pleural Effusion/left'"):
        QualifiedFinding.parse(term)


@given(st.lists(st.sampled_from((*SIDES, *EXTENTS, *MANNERS, *STATES, *PLACES)), max_size=8).flatmap(st.permutations))
def test_the_order_of_qualifiers_does_not_matter_for_what_is_read(qualifiers: list[str]) -> None:
    read = QualifiedFinding.parse("/".join(("Opacity", *qualifiers)))
    again = QualifiedFinding.parse("/".join(("Opacity", *sorted(qualifiers))))
    assert read.side == again.side
    for kind in ("extents", "manners", "states", "places", "unread"):
        assert Counter(getattr(read, kind)) == Counter(getattr(again, kind))
    kept = (*read.extents, *read.manners, *read.states, *read.places)
    assert {*kept} == {*qualifiers} - {*SIDES}


def test_what_a_manifest_keeps_are_findings() -> None:
    terms = [
        "normal",
        "No Indexing",
        "Opacity/ lung /left",
        "Opacity/lung/left",
        " ",
        "Technical Quality of Image Unsatisfactory ",
    ]
    assert qualified_terms(terms) == ("Opacity/lung/left",)
    assert qualified_terms([]) == ()


@pytest.mark.data
def test_every_published_qualifier_is_read(data_dir: Path) -> None:
    with (data_dir / "openi/reports.csv").open(encoding="utf-8-sig", newline="") as stream:
        terms = [term for row in csv.DictReader(stream) for term in qualified_terms(row["MeSH"].split(";"))]
    findings = [QualifiedFinding.parse(term) for term in terms]
    assert len(findings) > 5000
    assert not {word for finding in findings for word in finding.unread}
    sides = Counter(finding.side for finding in findings)
    assert min(sides[side] for side in SIDES) > 500
    assert sum(bool(finding.extents) for finding in findings) > 1000
