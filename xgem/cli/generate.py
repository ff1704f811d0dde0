"""``xgem generate`` and ``xgem replay``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xgem.cli.options import parse_guidance
from xgem.types import InputError

if TYPE_CHECKING:
    from xgem.pipeline.privacy_gate import PrivacyGate

Frontal = Annotated[Path | None, typer.Option("--frontal", metavar="FILE", help="A frontal radiograph as input.")]
Lateral = Annotated[Path | None, typer.Option("--lateral", metavar="FILE", help="A lateral radiograph as input.")]
Report = Annotated[str | None, typer.Option("--report", metavar="TEXT", help="A report as input.")]
More = Annotated[
    list[str] | None, typer.Option("--input", metavar="NAME=VALUE", help="An input of any modality; may be repeated.")
]
Mask = Annotated[
    list[str] | None,
    typer.Option(
        "--mask",
        metavar="[NAME=]FILE",
        help="A mask to follow, of the structure NAME or what the file says; may be repeated.",
    ),
]
Boxes = Annotated[Path | None, typer.Option("--boxes", metavar="FILE", help="Boxes of findings to follow: JSON, COCO.")]
Severity = Annotated[str | None, typer.Option("--severity", metavar="SCORE", help="A Brixia score, 0 to 18.")]
Demographics = Annotated[
    str | None, typer.Option("--demographics", metavar="TEXT", help="Of the patient, such as sex:F,age:71.")
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", metavar="NAME=FILE", help="An output to start from a given image; may be repeated."),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the results, new or empty.")]
Model = Annotated[
    str | None, typer.Option("--model", help="Embedded checkpoint, folder or hub id.", show_default="by the inputs")
]
Revision = Annotated[str | None, typer.Option("--revision", help="Branch, tag or commit of a hub id.")]
Device = Annotated[str | None, typer.Option("--device", help="cpu, cuda, cuda:1 ...", show_default="a GPU, or cpu")]
Dtype = Annotated[str | None, typer.Option("--dtype", help="float32, bfloat16 or float16.", show_default="float32")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the results of an earlier run in the folder.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the metadata as JSON instead of the files' names.")]
Progress = Annotated[bool, typer.Option("--progress/--no-progress", help="Show progress bars (on stderr).")]


def generate(
    outputs: Annotated[str, typer.Option("--outputs", metavar="NAMES", help="What to generate: lateral,report")],
    out: Out,
    frontal: Frontal = None,
    lateral: Lateral = None,
    report: Report = None,
    mask: Mask = None,
    boxes: Boxes = None,
    severity: Severity = None,
    demographics: Demographics = None,
    more: More = None,
    model: Model = None,
    revision: Revision = None,
    num_samples: Annotated[int, typer.Option(help="Samples of each output.")] = 1,
    seed: Annotated[int | None, typer.Option(help="0 or more.", show_default="random, recorded")] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(help="Sampling steps, 1 to 1000.", show_default="the preset's")
    ] = None,
    guidance_scale: Annotated[
        str | None,
        typer.Option(help="A number, or one an output: lateral=2,report=1.5", show_default="the preset's"),
    ] = None,
    sampler: Annotated[
        str | None, typer.Option(help="dpmsolver++, sde-dpmsolver++, ddim or unipc.", show_default="the preset's")
    ] = None,
    joint: Annotated[
        bool | None,
        typer.Option(
            "--joint/--independent",
            help="Several outputs see each other, or each is sampled alone.",
            show_default="joint where the model can",
        ),
    ] = None,
    keep: Keep = None,
    strength: Annotated[
        float | None, typer.Option(help="How much of a kept output is made anew, up to 1.", show_default="0.5")
    ] = None,
    control_scale: Annotated[float, typer.Option(help="How strongly annotations steer; 0 is not at all.")] = 1.0,
    control_end: Annotated[float, typer.Option(help="Until which share of the steps they do, up to 1.")] = 1.0,
    greedy: Annotated[bool, typer.Option(help="Reports take the likeliest token, or draw it (seeded).")] = True,
    device: Device = None,
    dtype: Dtype = None,
    batch_size: Annotated[int, typer.Option(help="Most samples computed together.")] = 16,
    allow_any: Annotated[
        bool, typer.Option("--allow-any", help="Accept DICOM files of another modality, body part or view.")
    ] = False,
    privacy_gate: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Draw again what is too close to these training images: manifest, folder, index."
        ),
    ] = None,
    privacy_threshold: Annotated[
        str | None,
        typer.Option(
            metavar="X",
            help="Too close: a share of held-out real images, or distances: latent=0.01,pixel=0.27",
            show_default="0.01",
        ),
    ] = None,
    save_privacy_index: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep the gate's index (.safetensors) for the next call.")
    ] = None,
    overwrite: Overwrite = False,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Generate radiographs and reports from any of the others.

    xgem generate --frontal cxr.dcm --outputs lateral,report --out results

    Without any input the outputs are drawn from all that the model knows. Everything written is marked as synthetic
    and carries what xgem replay needs to make it again; a report given as input is stored in it as text.
    """
    from xgem.utils.files import check_output_folder

    named = {"frontal": frontal, "lateral": lateral, "report": report, "mask": _mask(mask)}
    named |= {"boxes": boxes, "severity": severity, "demographics": demographics}
    inputs = _inputs(named, more)
    scale = parse_guidance(guidance_scale)
    names = [name.strip() for name in outputs.split(",") if name.strip()]
    check_output_folder(out, overwrite=overwrite)  # asked before the work, not after it
    gate = _gate(privacy_gate, privacy_threshold, save_privacy_index)

    from xgem.api import load, model_for

    pipeline = load(model or model_for(inputs), revision=revision, device=device, dtype=dtype)
    if gate is not None and save_privacy_index is not None:
        gate = gate.indexed(pipeline, names)
        gate.save(save_privacy_index)
    generation = pipeline(
        inputs,
        names,
        seed=seed,
        num_samples=num_samples,
        num_inference_steps=num_inference_steps,
        guidance_scale=scale,
        sampler=sampler,
        joint=joint,
        keep=_named(keep, "--keep") or None,
        strength=strength,
        control_scale=control_scale,
        control_end=control_end,
        greedy=greedy,
        progress=progress,
        batch_size=batch_size,
        allow_any=allow_any,
        privacy_gate=gate,
    )
    _save(generation, out, overwrite, as_json)


def replay(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A PNG or report that xgem wrote.")],
    out: Out,
    frontal: Frontal = None,
    lateral: Lateral = None,
    report: Report = None,
    mask: Mask = None,
    boxes: Boxes = None,
    more: More = None,
    keep: Keep = None,
    model: Model = None,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Make a generated file again from the metadata it carries: identically, on the same machine.

    Images that were inputs are looked up by their recorded name in the working folder and beside FILE, or given as
    options. Model, device and dtype are the recorded ones unless given. Ends with 1 where the new file differs.
    """
    from xgem.utils.files import check_output_folder

    inputs = _inputs(
        {"frontal": frontal, "lateral": lateral, "report": report, "mask": _mask(mask), "boxes": boxes}, more
    )
    check_output_folder(out, overwrite=overwrite)

    from xgem.pipeline.replay import replay as run

    replayed = run(
        file, inputs=inputs, keep=_named(keep, "--keep"), model=model, device=device, dtype=dtype, progress=progress
    )
    _save(replayed.generation, out, overwrite, as_json)
    if not replayed.identical:
        typer.echo(f"xgem: the new file differs from {file}: another machine, device or version made it", err=True)
        raise typer.Exit(1)
    typer.echo(f"identical to {file}", err=True)


def _gate(path: Path | None, threshold: str | None, index: Path | None) -> PrivacyGate | None:
    if path is None:
        if threshold is not None or index is not None:
            raise InputError("--privacy-threshold and --save-privacy-index are of --privacy-gate; give that too")
        return None
    if index is not None and index.suffix != ".safetensors":
        raise InputError(f"--save-privacy-index is {str(index)!r}, expected a name that ends in .safetensors")
    from xgem.pipeline.privacy_gate import PrivacyGate, Thresholds

    options: dict[str, Any] = {}
    try:
        if threshold is not None and "=" in threshold:
            given = {name.strip(): float(value) for name, value in (part.split("=") for part in threshold.split(","))}
            options["thresholds"] = Thresholds(**given)
        elif threshold is not None:
            options["quantile"] = float(threshold)
    except (ValueError, TypeError):
        raise InputError(
            f"--privacy-threshold is {threshold!r}, expected a share like 0.01, or like latent=0.01,pixel=0.27"
        ) from None
    return PrivacyGate.open(path, **options)


def _save(generation: Any, out: Path, overwrite: bool, as_json: bool) -> None:
    from xgem.pipeline.generation import RECORD_NAME

    files = generation.save(out, overwrite=overwrite)
    if as_json:
        record = json.loads((out / RECORD_NAME).read_text(encoding="utf-8"))
        typer.echo(json.dumps(record, indent=2, sort_keys=True))
        return
    for path in files:
        typer.echo(str(out / path.name))


def _inputs(named: dict[str, Any], more: list[str] | None) -> dict[str, Any]:
    inputs = {name: value for name, value in named.items() if value is not None}
    for name, value in _named(more, "--input").items():
        if name in inputs:
            raise InputError(f"input {name!r} is given twice")
        inputs[name] = value
    return inputs


def _mask(texts: list[str] | None) -> Any:
    """One file that says itself what it shows, or files by structure, which their names say where nothing else does."""
    if texts is not None and len(texts) == 1 and "=" not in texts[0]:
        return texts[0]
    named = [text if "=" in text else f"{Path(text).stem.rpartition('.')[2]}={text}" for text in texts or ()]
    return _named(named, "--mask") or None


def _named(texts: list[str] | None, option: str) -> dict[str, Any]:
    """NAME=VALUE options as a mapping."""
    values: dict[str, Any] = {}
    for text in texts or []:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise InputError(f"{option} is {text!r}, expected NAME=VALUE")
        if name in values:
            raise InputError(f"{option} names {name!r} twice")
        values[name] = value
    return values
