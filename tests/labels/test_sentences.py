from __future__ import annotations

import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgem.labels.rules import label_report
from xgem.labels.sentences import plain_characters, sentences, unwrapped, written_sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("No focal\nconsolidation.", ["no focal consolidation"]),
        ("No focal\r\nconsolidation.", ["no focal consolidation"]),
        ("No focal  \n  consolidation.", ["no focal consolidation"]),
        ("No focal\u2028consolidation.", ["no focal consolidation"]),
        ("NO FOCAL\nCONSOLIDATION", ["no focal consolidation"]),
        ("No focal air-\nspace disease.", ["no focal air-space disease"]),
        ("No con\u00ad\nsolidation.", ["no consolidation"]),
        ("No evidence of\nKerley B lines.", ["no evidence of kerley b lines"]),
        ("Cardiac And Mediastinal\nContours Are Normal.", ["cardiac and mediastinal contours are normal"]),
        ("No effusion.\nCardiomegaly.", ["no effusion", "cardiomegaly"]),
        ("No effusion\n\ncardiomegaly", ["no effusion", "cardiomegaly"]),
        ("No effusion\n \ncardiomegaly", ["no effusion", "cardiomegaly"]),
        ("No effusion\n- cardiomegaly", ["no effusion", "- cardiomegaly"]),
        ("no effusion\n\u2022 cardiomegaly", ["no effusion", "\u2022 cardiomegaly"]),
        ("no effusion\n2) cardiomegaly", ["no effusion", "2) cardiomegaly"]),
        ("no effusion\n(b) cardiomegaly", ["no effusion", "(b) cardiomegaly"]),
        ("no effusion\nIMPRESSION: cardiomegaly", ["no effusion", "impression: cardiomegaly"]),
        ("no effusion\nHeart size: cardiomegaly", ["no effusion", "heart size: cardiomegaly"]),
        ("no effusion\nIMPRESSION\ncardiomegaly", ["no effusion", "impression", "cardiomegaly"]),
        ("No effusion\nCardiomegaly", ["no effusion", "cardiomegaly"]),
        ("A nodule of 1.5\ncm. It isn\u2019t new.", ["a nodule of 1 5 cm", "it is not new"]),
    ],
)
def test_where_a_sentence_ends(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("it isn\u2019t \u201cclear\u201d", 'it isn\'t "clear"'),
        ("no e\ufb00usion, no in\ufb01ltrate", "no effusion, no infiltrate"),
        ("con\u00adsoli\u00addation", "consolidation"),
        ("con\u00ad\r\n solidation", "consolidation"),
        ("\ufeffleft\u2011sided,\u00a0small", "left-sided, small"),
        ("effusion\u2014stable", "effusion - stable"),
        ("T\u00d3RAX", "T\u00d3RAX"),
    ],
)
def test_plain_characters(text: str, plain: str) -> None:
    assert plain_characters(text) == plain


_SAID = [
    "There is no focal consolidation, pleural effusion or pneumothorax.",
    "No evidence of acute pneumonia or pulmonary edema.",
    "Right-sided air-space disease is not seen.",
    "1.5 cm nodule in the left upper lobe, possibly a granuloma.",
    "Mild cardiomegaly without edema.",
]


@given(st.lists(st.sampled_from(_SAID), min_size=1, max_size=5), st.integers(30, 100))
def test_width_of_lines_does_not_matter(said: list[str], width: int) -> None:
    text = " ".join(said)
    wrapped = textwrap.fill(text, width)
    assert sentences(wrapped) == sentences(text)
    assert label_report(wrapped) == label_report(text)


@given(st.text(max_size=200))
def test_unwrapping_twice_changes_nothing_in_the_words(text: str) -> None:
    once = unwrapped(text)
    assert sentences(once) == sentences(unwrapped(once))


def test_written_sentences_end_at_a_mark_and_white_space() -> None:
    assert written_sentences(" Clear. Is it?  Yes!\nv1.2 stays. ") == ["Clear.", "Is it?", "Yes!", "v1.2 stays."]
    assert written_sentences("no mark") == ["no mark"]
    assert written_sentences("  ") == []
    numbered = "1. Small effusion. 2. Fracture of T12. Old."
    assert written_sentences(numbered) == ["1. Small effusion.", "2. Fracture of T12.", "Old."]
    assert " ".join(written_sentences(numbered)) == numbered
