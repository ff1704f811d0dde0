"""Options that several commands read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xgem.cli import completion
from xgem.configs.base import Config, Rescale, Voi
from xgem.configs.reading import ReadOptions, read_help
from xgem.types import InputError
from xgem.utils.progress import showing

if TYPE_CHECKING:
    from xgem.configs.preset import Preset, StageConfig


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
    typer.Option("--model", metavar="NAME", help="Embedded checkpoint, folder or hub id.", show_default="openi-256"),
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
GuidanceStart = Annotated[
    float | None,
    typer.Option(
        "--guidance-start",
        metavar="X",
        help="Fraction of the steps where guidance begins.",
        show_default="the preset's",
    ),
]
GuidanceEnd = Annotated[
    float | None,
    typer.Option(
        "--guidance-end", metavar="X", help="Fraction of the steps after which it ends.", show_default="the preset's"
    ),
]
GuidanceRescale = Annotated[
    float | None,
    typer.Option(
        "--guidance-rescale",
        metavar="X",
        help="Rescaling of guidance, against saturation.",
        show_default="the preset's",
    ),
]
Candidates = Annotated[
    int,
    typer.Option("--num-candidates", metavar="N", help="Candidates a sample; the one nearest to the inputs is kept."),
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
Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the denoisers (UNets: the extra onnx, on the CPU in float32).")
]
BatchSize = Annotated[int, typer.Option("--batch-size", metavar="N", help="Maximum batch size.")]
Draws = Annotated[int, typer.Option("--bootstrap", metavar="N", callback=at_least(1), help="Bootstrap draws.")]
JudgeSource = Annotated[
    str | None,
    typer.Option(
        "--judge",
        metavar="DIR|train|chat:...",
        help="Judge of findings: a folder of `xgem eval judge`; train: on the training studies; or, beside xgem's own "
        "where no features are needed, chat:FILE.yaml or chat:URL#MODEL.",
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


def _shown(context: typer.Context, value: bool) -> bool:
    """Of every bar of the command, also those deep inside."""
    context.with_resource(showing(value))
    return value


Progress = Annotated[
    bool,
    typer.Option("--progress/--no-progress", callback=_shown, help="Show progress and the time left (on stderr)."),
]


def _read_option(name: str, flag: str, metavar: str | None = None) -> Any:
    shown = {"voi": "none", "rescale": "auto"}.get(name, "no")
    return typer.Option(flag, metavar=metavar, help=read_help(name), show_default=f"the manifest's, or {shown}")


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the user's radiographs are read: the same options on every command that reads some."""

    voi: Annotated[Voi | None, _read_option("voi", "--voi", "NAME")] = None
    rescale: Annotated[Rescale | None, _read_option("rescale", "--rescale", "NAME")] = None
    invert: Annotated[bool | None, _read_option("invert", "--invert/--no-invert")] = None
    allow_any: Annotated[bool | None, _read_option("allow_any", "--allow-any")] = None

    @property
    def reading(self) -> ReadOptions:
        """What was given."""
        return ReadOptions(**{name: getattr(self, name) for name in ReadOptions.model_fields if name != "pixel_aspect"})


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
    from xgem.configs.preset import StageConfig

    changed = dict(stages) if steps is None else {n: c.model_copy(update={"steps": steps}) for n, c in stages.items()}
    values = {name: config.model_dump(mode="json") for name, config in changed.items()}
    for setting in settings:
        name, field, value = _assignment(setting, changed, "stage to train", "clip.batch_size=32")
        _, dot, weight = field.partition(".")
        values[name] |= {"loss": {**values[name]["loss"], weight: value}} if dot else {field: value}
        changed[name] = StageConfig.parse(values[name], f"--set {setting}")
    return changed


def _assignment(setting: str, known: Mapping[str, Config], what: str, example: str) -> tuple[str, str, Any]:
    """Name, field and value of ``NAME.FIELD=VALUE``; ``loss.X`` counts as a field where ``loss`` is one."""
    from xgem.configs.yaml_text import parse_yaml

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
