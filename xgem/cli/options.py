"""Options that several commands read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from xgem.types import InputError

if TYPE_CHECKING:
    from xgem.configs.schema import Preset


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


def with_settings(preset: Preset, settings: Sequence[str]) -> Preset:
    """``preset`` with fields of its components as ``NAME.FIELD=VALUE`` say (values are YAML); InputError where not."""
    import yaml

    values: dict[str, Any] = preset.model_dump(mode="json")
    for setting in settings:
        path, equals, text = setting.partition("=")
        name, _, field = path.strip().partition(".")
        if not equals or not field:
            raise InputError(f"--set {setting}: expected NAME.FIELD=VALUE, like frontal.width=320")
        if name not in values["components"]:
            raise InputError(f"--set {setting}: no component {name!r}, only {', '.join(values['components'])}")
        component = values["components"][name]
        if field not in component or field == "kind":
            fields = ", ".join(key for key in component if key != "kind")
            raise InputError(f"--set {setting}: {name} has no field {field!r}, only {fields}")
        try:
            component[field] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"--set {setting}: not a YAML value ({str(error).splitlines()[0]})") from None
    return type(preset).parse(values, "--set " + " ".join(settings)) if settings else preset
