"""Options that several commands read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xgem.cli import completion
from xgem.types import InputError

if TYPE_CHECKING:
    from xgem.configs.preset import Preset


def at_least(least: int) -> Callable[[typer.CallbackParam, int], int]:
    """A callback of an option: numbers below ``least`` are refused in one line."""

    def check(option: typer.CallbackParam, value: int) -> int:
        if value < least:
            raise InputError(f"{option.opts[0]} {value}: expected at least {least}")
        return value

    return check


Data = Annotated[Path, typer.Option("--data", metavar="MANIFEST", help="Manifest: .parquet or .jsonl.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the results as JSON.")]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Run folder for tables, reports and images.")]
Model = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="Embedded checkpoint, folder or hub id.", show_default="openi-128"),
]
Split = Annotated[str, typer.Option("--split", metavar="NAME", help="Split of the manifest to evaluate on.")]
Limit = Annotated[
    int | None, typer.Option("--limit", metavar="N", help="Maximum number of studies, chosen by the seed.")
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", callback=at_least(0), help="0 or more.")]
Steps = Annotated[
    int | None, typer.Option("--num-inference-steps", metavar="N", help="Sampling steps.", show_default="the preset's")
]
Guidance = Annotated[
    str | None,
    typer.Option(
        "--guidance-scale",
        metavar="X",
        help="Guidance scale, or one per output: lateral=2,report=1.5",
        show_default="the preset's",
    ),
]
Sampler = Annotated[
    str | None,
    typer.Option(
        "--sampler",
        metavar="NAME",
        help="dpmsolver++, sde-dpmsolver++, ddim or unipc.",
        show_default="the preset's",
        autocompletion=completion.samplers,
    ),
]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", help="Maximum batch size.")]
Draws = Annotated[int, typer.Option("--bootstrap", metavar="N", callback=at_least(1), help="Bootstrap draws.")]
JudgeSource = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="DIR|train",
        help="Judge of findings: a folder of `xgem eval judge`, or train: on the training studies.",
        show_default="the one that ships with xgem",
    ),
]
Epochs = Annotated[int, typer.Option("--classifier-epochs", metavar="N", help="Epochs of the classifier that judges.")]
Cache = Annotated[
    Path | None,
    typer.Option(
        "--cache", metavar="DIR", help="Folder of features and trained judges.", show_default="that of `xgem cache`"
    ),
]
Device = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu, cuda, ...", show_default="a GPU, or cpu")
]
Dtype = Annotated[
    str | None, typer.Option("--dtype", metavar="NAME", help="float32, bfloat16 or float16.", show_default="float32")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results of an earlier run.")]
Progress = Annotated[bool, typer.Option("--progress/--no-progress", help="Show progress bars (on stderr).")]


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
    from xgem.configs.yaml_text import parse_yaml

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
        component[field] = parse_yaml(text, f"--set {setting}")
    return type(preset).parse(values, "--set " + " ".join(settings)) if settings else preset
