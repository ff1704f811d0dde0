from __future__ import annotations

import pytest

from xgem.modalities import get_modality
from xgem.types import InputError

PLAIN = "No evidence of air-space disease. Pneumonia isn't seen."


@pytest.mark.parametrize(
    "text",
    [
        "No evidence of\nair-space disease.\nPneumonia isn't seen.",
        "No evidence of air-\nspace disease.\r\n\r\nPneumonia isn't seen.\n",
        "No evi\u00addence of air\u2011space disease. Pneumonia isn\u2019t seen.",
    ],
)
def test_wrapped_and_typographic_prompts_are_the_plain_text(debug_preset, text: str) -> None:
    report = get_modality("report")
    expected = report.read(PLAIN, debug_preset)
    prompt = report.read(text, debug_preset)
    assert prompt.text == prompt.value == PLAIN
    assert prompt.sha256 == expected.sha256


@pytest.mark.parametrize("value", ["", " \n ", "\u00ad", "...", 3, None])
def test_a_text_without_letters_is_refused(debug_preset, value: object) -> None:
    with pytest.raises(InputError, match="report: expected text"):
        get_modality("report").read(value, debug_preset)
