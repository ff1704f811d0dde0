"""Patients told by the names of images."""

from __future__ import annotations

import pytest

from xgem.data.sources.cases import case_of


@pytest.mark.parametrize(
    ("stems", "case"),
    [
        (("pneumonia-23-day1", "pneumonia-23-day-12-PA", "pneumonia-23-prior", "pneumonia-23"), "pneumonia-23"),
        (("progressive-12-hours", "progressive-3-days", "progressive-on-admission"), "progressive"),
        (("caso-70-1-PA", "caso-70-2-APS"), "caso-70"),
        (("16654_1_1", "16654_4_1"), "16654"),
        (("SARS-10.1148-g04mr34-Fig8a-day0", "SARS-10.1148-g07a-Fig7a"), "SARS-10.1148"),
        (("radiol.2020.fig3b", "radiol.2020.fig6b"), "radiol.2020"),
        (("trial_f1-PA", "trial_f3"), "trial"),
        (("s41_Fig1_HTML.webp-day5", "s41_Fig1_HTML.webp-day10"), "s41"),
        (("paper.pdf-001-a", "paper.pdf-001-b"), "paper"),
        (("case2a", "case2b"), "case2"),
        (("auntminnie-a-1", "auntminnie-b-1"), "auntminnie"),
        (("F2DE909F-E19C-4900-92F5-8F435B031AC6",), "31BA3780-2323-493F-8AED-62081B9C383B"),
        (("7EF28E12-F628-4BEC-A8C5-E6277C2E4F60",), "7EF28E12-F628-4BEC-A8C5-E6277C2E4F60"),
        (("pneumonia-1",), "pneumonia-1"),
        ((".pdf",), ".pdf"),
    ],
)
def test_images_of_a_case_share_a_subject(stems: tuple[str, ...], case: str):
    assert {case_of(stem) for stem in stems} == {f"covid-cxr-{case}"}
