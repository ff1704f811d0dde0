"""Options that several commands read."""

from __future__ import annotations

from xgem.types import InputError


def parse_guidance(text: str | None) -> float | dict[str, float] | None:
    """``"2.5"``, or ``"lateral=2,report=1.5"``."""
    if text is None:
        return None
    try:
        if "=" not in text:
            return float(text)
        pairs = (part.split("=") for part in text.split(","))
        return {name.strip(): float(value) for name, value in pairs}
    except ValueError:
        raise InputError(f"--guidance-scale is {text!r}, expected a number, or like lateral=2,report=1.5") from None
