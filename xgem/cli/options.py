"""Options that several commands read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from xgem.cli import completion
from xgem.configs.base import Rescale, Voi
from xgem.configs.reading import ReadOptions, read_help
from xgem.types import InputError
from xgem.utils.progress import showing


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
PrivacyThreshold = Annotated[
    str | None,
    typer.Option(
        metavar="X",
        help="Fraction of held-out real images to refuse, or distances: latent=0.01,pixel=0.27",
        show_default="0.01",
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


def privacy_options(threshold: str | None) -> dict[str, Any]:
    """``--privacy-threshold`` as a privacy gate's options ``thresholds`` or ``quantile``."""
    from xgem.pipeline.privacy_gate import Thresholds

    try:
        if threshold is not None and "=" in threshold:
            given = {name.strip(): float(value) for name, value in (part.split("=") for part in threshold.split(","))}
            return {"thresholds": Thresholds(**given)}
        return {} if threshold is None else {"quantile": float(threshold)}
    except (ValueError, TypeError):
        raise InputError(
            f"--privacy-threshold is {threshold!r}, expected a fraction like 0.01, or latent=0.01,pixel=0.27"
        ) from None
