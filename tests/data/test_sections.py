"""Sections of reports by their headings."""

from __future__ import annotations

import pytest

from xgem.data.sections import join_sections, section_of, split_sections

FULL = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)

 INDICATION:  ___F with cough  // infection?

 TECHNIQUE:  Chest PA and lateral

 COMPARISON:  None.

 FINDINGS:

 The lungs are clear.

 The heart is normal
 in size.

 IMPRESSION:

 No acute process.

 NOTIFICATION:  Called at 5 p.m.
"""


def test_headings_on_lines() -> None:
    found = split_sections(FULL)
    assert found.findings == "The lungs are clear. The heart is normal in size."
    assert found.impression == "No acute process."
    assert found.others == {
        "title": "FINAL REPORT",
        "examination": "CHEST (PA AND LAT)",
        "indication": "___F with cough // infection?",
        "technique": "Chest PA and lateral",
        "comparison": "None.",
        "other": "Called at 5 p.m.",
    }
    assert split_sections(FULL.replace("\n", "\r\n")) == found


@pytest.mark.parametrize(
    ("report", "findings", "impression"),
    [
        ("Lungs are clear.", "", "Lungs are clear."),
        ("", "", ""),
        ("findings: Clear lungs. impression: normal", "Clear lungs.", "Normal."),
        ("FINDINGS: A is seen. IMPRESSION: B is new. CONCLUSION: C too.", "A is seen.", "B is new. C too."),
        ("Findings\nClear lungs.\n\nImpression\nNormal.\n", "Clear lungs.", "Normal."),
        (
            "FINDINGS:\nLeft is clear.\nIMPRESSION: x is so.\nFINDINGS: Right too.",
            "Left is clear. Right too.",
            "X is so.",
        ),
        ("INDICATION: Cough.\n\nThe lungs are clear.", "", "The lungs are clear."),
        (
            "COMPARISON: None.\n\nThe lungs are clear.\n\nIMPRESSION: Normal chest.",
            "The lungs are clear.",
            "Normal chest.",
        ),
        ("CHEST, PA AND LATERAL: Clear lungs.\n\nCONCLUSION: Normal.", "Clear lungs.", "Normal."),
        ("AP chest compared to yesterday:\n\nLungs are clear.", "", "Lungs are clear."),
        ("FINDINGS/IMPRESSION: Clear lungs.", "", "Clear lungs."),
        ("Hallazgos: Sin derrame. Conclusión: Normal.", "Sin derrame.", "Normal."),
    ],
)
def test_forms(report: str, findings: str, impression: str) -> None:
    found = split_sections(report)
    assert (found.findings, found.impression) == (findings, impression)


@pytest.mark.parametrize(
    "report",
    ["The impression is of a mass.", "Findings are the same as in the prior study.", "LUNGS CLEAR. NO EFFUSION."],
)
def test_words_of_a_sentence_are_no_headings(report: str) -> None:
    assert split_sections(report).impression == report


def test_one_section_of_a_report() -> None:
    report = join_sections("Lungs are clear.", "No acute disease.")
    assert section_of(report, "findings") == "Lungs are clear."
    assert section_of(report, "impression") == "No acute disease."
    assert (section_of("Old granuloma.", "findings"), section_of("Old granuloma.", "impression")) == (
        "",
        "Old granuloma.",
    )
