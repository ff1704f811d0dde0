"""A report that the model cannot read is said to be one, with the embedded model's own vocabulary."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from xgem.checkpoints.locate import DEFAULT_MODEL, embedded_names
from xgem.pipeline.conditioning import read_prompts, with_notes
from xgem.pipeline.pipeline import XgemPipeline

pytestmark = pytest.mark.skipif(DEFAULT_MODEL not in embedded_names(), reason="needs the embedded model")
SCRIPT, WORDS = "not in Latin script", "no word of the text is in the model's vocabulary"


@pytest.fixture(scope="module")
def notes_of() -> Callable[[str], tuple[str, ...]]:
    pipeline = XgemPipeline.from_pretrained(device="cpu")

    def notes(text: str) -> tuple[str, ...]:
        prompts = read_prompts(pipeline.preset, {"report": text})
        return with_notes(pipeline, prompts, ["frontal"])["report"].notes

    return notes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Edema.", ""),
        ("NO ACUTE CARDIOPULMONARY ABNORMALITY", ""),
        ("Heart size 12 cm. COPD?", ""),
        ("cardiomegally and efusion", ""),  # "and" is known: a misspelling is not worth a warning
        ("心影增大", SCRIPT),
        ("Сердце увеличено, normal", SCRIPT),
        ("Le coeur est de taille normale.", WORDS),
        ("asdf qwer", WORDS),
        ("12 x 4", ""),
    ],
)
def test_unfamiliar_reports_get_a_note(
    notes_of: Callable[[str], tuple[str, ...]], caplog: pytest.LogCaptureFixture, text: str, expected: str
) -> None:
    notes = notes_of(text)
    assert len(notes) == bool(expected)
    assert all(expected in note for note in notes)
    assert [record.message for record in caplog.records] == [f"report: {note}" for note in notes]
