"""Demographics: as words or as a mapping; what is unknown is left out, what cannot be is refused."""

from __future__ import annotations

from typing import Any

import pytest

from xgem.data.captions import preface
from xgem.data.demographics import read_demographics
from xgem.types import InputError


@pytest.mark.parametrize(
    ("value", "known"),
    [
        ({"sex": "F", "age": 71}, {"sex": "F", "age": 71}),
        ("sex:F,age:71", {"sex": "F", "age": 71}),
        ("sex:Female, age:71.0.", {"sex": "F", "age": 71}),
        ({"sex": "male"}, {"sex": "M"}),
        ({"sex": None, "age": 0, "race": ""}, {"age": 0}),
        ({"sex": "Unknown", "age": "120"}, {"age": 120}),
        ("race: Black  or African American", {"race": "Black or African American"}),
    ],
)
def test_what_is_known_is_kept(value: Any, known: dict[str, Any]):
    assert read_demographics(value) == known


@pytest.mark.parametrize("known", [{"sex": "M", "age": 71.5, "race": "Black"}, {"age": 3.0}, {"sex": "F"}])
def test_the_words_in_front_of_a_text_read_back(known: dict[str, Any]):
    assert read_demographics(preface(**known)) == known


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"weight": 80}, "unknown field 'weight', expected sex, age and race"),
        ("sex:F, weight:80", "unknown field 'weight'"),
        ("female", "'female'; expected each field once"),
        ("sex:F, sex:M", "each field once"),
        ({"sex": "X"}, "sex is 'X', expected F, M"),
        ({"sex": 1}, "sex is 1"),
        ({"age": -1}, "age is -1, expected a number from 0 to 120"),
        ({"age": 121}, "age is 121"),
        ({"age": float("nan")}, "age is nan"),
        ({"age": "old"}, "age is 'old'"),
        ({"age": True}, "age is 'True'"),
        ({"race": "Black. Large effusion"}, "race is .*expected words"),
        ({"race": 3}, "race is '3'"),
        ({"race": "--"}, "race is '--'"),
        ({}, "no field is known"),
        ({"sex": None}, "no field is known"),
        ("", "no field is known"),
        (71, "expected a mapping or text like 'sex:F, age:71', got int"),
    ],
)
def test_what_cannot_be_is_refused(value: Any, message: str):
    with pytest.raises(InputError, match=message):
        read_demographics(value)
