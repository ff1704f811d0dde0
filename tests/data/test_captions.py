from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgem.data.captions import NORMAL_CAPTION, caption_from_labels
from xgem.data.sources.openi import labels_from_problems


@pytest.mark.parametrize(
    ("labels", "caption"),
    [
        (["Cardiomegaly", "Pleural Effusion"], "Cardiomegaly. Pleural effusion."),
        (["Fractures, Bone"], "Bone fractures."),
        (["Hernia, Hiatal"], "Hiatal hernia."),
        (["Pulmonary Disease, Chronic Obstructive"], "Chronic obstructive pulmonary disease."),
        (["Pleural_Thickening"], "Pleural thickening."),
        (["Aorta, Thoracic"], "Abnormality of the thoracic aorta."),
        (["Lung"], "Abnormality of the lung."),
        (["normal"], NORMAL_CAPTION),
        (["No Finding"], NORMAL_CAPTION),
        (["normal", "Scoliosis"], "Scoliosis."),
        (["Opacity", "Opacity"], "Opacity."),
        (["ETT - Normal"], "Endotracheal tube in normal position."),
        (["Brocho-pneumonia", "TB"], "Bronchopneumonia. Tuberculosis."),
        ([], ""),
        (["", " "], ""),
    ],
)
def test_captions(labels: list[str], caption: str):
    assert caption_from_labels(labels) == caption


@given(st.lists(st.text(alphabet="abcXY ,_", max_size=12)))
def test_captions_are_sentences(labels: list[str]):
    caption = caption_from_labels(labels)
    assert caption == "" or (caption.endswith(".") and "  " not in caption and "_" not in caption)


@pytest.mark.data
def test_every_real_problem_has_a_caption(data_dir: Path):
    with (data_dir / "openi/reports.csv").open(encoding="utf-8-sig", newline="") as stream:
        problems = {problem for row in csv.DictReader(stream) for problem in row["Problems"].split(";")}
    for label in labels_from_problems(sorted(problems)):
        caption = caption_from_labels([label])
        assert caption.endswith(".")
        assert "," not in caption
