"""Changes to a preset as ``NAME.FIELD=VALUE`` says them: of its components, and of its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from xgem.configs.base import Config
from xgem.configs.preset import Preset, StageConfig
from xgem.configs.yaml_text import parse_yaml
from xgem.types import InputError


def with_settings(preset: Preset, settings: Sequence[str]) -> Preset:
    """``preset`` with fields of its components as ``NAME.FIELD=VALUE`` say (values are YAML); InputError where not."""
    values: dict[str, Any] = preset.model_dump(mode="json")
    for setting in settings:
        name, field, value = _assignment(setting, preset.components, "component", "frontal.width=320")
        values["components"][name][field] = value
    return type(preset).parse(values, "--set " + " ".join(settings)) if settings else preset


def with_stage_settings(
    stages: Mapping[str, StageConfig], settings: Sequence[str], *, steps: int | None = None
) -> dict[str, StageConfig]:
    """Settings of stages with ``steps`` for all of them, and fields as ``STAGE.FIELD=VALUE`` say.

    ``STAGE.loss.NAME=VALUE`` sets one of a stage's own weights, whose names the stage checks.

    Raises:
        InputError: a stage that is not trained, or an unknown field; lists the known ones. ConfigError: a bad value.
    """
    changed = dict(stages) if steps is None else {n: c.model_copy(update={"steps": steps}) for n, c in stages.items()}
    values = {name: config.model_dump(mode="json") for name, config in changed.items()}
    for setting in settings:
        name, field, value = _assignment(setting, changed, "stage to train", "clip.batch_size=32")
        _, dot, weight = field.partition(".")
        values[name] |= {"loss": {**values[name]["loss"], weight: value}} if dot else {field: value}
        changed[name] = type(changed[name]).parse(values[name], f"--set {setting}")
    return changed


def _assignment(setting: str, known: Mapping[str, Config], what: str, example: str) -> tuple[str, str, Any]:
    """Name, field and value of ``NAME.FIELD=VALUE``; ``loss.X`` counts as a field where ``loss`` is one."""
    path, equals, text = setting.partition("=")
    name, _, field = path.strip().partition(".")
    if not equals or not field:
        raise InputError(f"--set {setting}: expected NAME.FIELD=VALUE, like {example}")
    if name not in known:
        raise InputError(f"--set {setting}: no {what} {name!r}, only {', '.join(known)}")
    first, _, inner = field.partition(".")
    fields = [key for key in type(known[name]).model_fields if key != "kind"]
    if first not in fields or (inner and first != "loss"):
        raise InputError(f"--set {setting}: {name} has no field {field!r}, only {', '.join(fields)}")
    return name, field, parse_yaml(text, f"--set {setting}")
