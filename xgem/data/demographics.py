"""Demographics given by a user: sex, age, race."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from xgem.types import InputError

MAX_AGE = 120.0
_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M"}


def read_demographics(value: Any) -> dict[str, Any]:
    """Demographics as keyword arguments of ``captions.preface``: ``sex``, ``age``, ``race``.

    Args:
        value: a mapping, or text such as ``"sex:F, age:71"``. ``sex`` is F, M, female or male, ``age`` is from 0 to 120
            years, ``race`` is one or a few words. Fields that are None, empty or "unknown" are left out.

    Raises:
        InputError: unknown or repeated fields, values out of range, or no field at all.
    """
    # Text into fields
    if isinstance(value, str):
        given: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in value.strip().removesuffix(".").split(","))):
            name, colon, text = (piece.strip() for piece in part.partition(":"))
            if not colon or name in given:
                raise InputError(f"demographics: {part[:40]!r}; expected each field once, like 'sex:F, age:71'")
            given[name] = text
        value = given
    if not isinstance(value, Mapping):
        raise InputError(f"demographics: expected a mapping or text like 'sex:F, age:71', got {type(value).__name__}")
    unknown = [name for name in value if name not in ("sex", "age", "race")]
    if unknown:
        raise InputError(f"demographics: unknown field {unknown[0]!r}, expected sex, age and race")
    # Each field by its own rules
    known: dict[str, Any] = {}
    for name in ("sex", "age", "race"):
        field = value.get(name)
        if field is None or (isinstance(field, str) and field.strip().lower() in ("", "unknown")):
            continue
        if name == "sex":
            known[name] = _SEXES.get(str(field).strip().lower())
            if known[name] is None:
                raise InputError(f"demographics: sex is {field!r}, expected F, M, female or male")
        elif name == "age":
            known[name] = number_up_to(MAX_AGE, "demographics: age", field)
        else:
            known[name] = _race(field)
    if not known:
        raise InputError("demographics: no field is known; leave them out")
    return known


def number_up_to(most: float, name: str, value: Any) -> float:
    """``value``, a number or its text, from 0 to ``most``; otherwise InputError, which calls it ``name``."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{name} is {str(value)[:40]!r}, expected a number from 0 to {most:g}") from None
    if not 0 <= number <= most:
        raise InputError(f"{name} is {number:g}, expected a number from 0 to {most:g}")
    return number


def _race(value: Any) -> str:
    text = " ".join(value.split()) if isinstance(value, str) else ""
    if not text or any(sign in text for sign in ",:.") or not any(letter.isalpha() for letter in text):
        raise InputError(f"demographics: race is {str(value)[:40]!r}, expected words without comma, colon or full stop")
    return text
