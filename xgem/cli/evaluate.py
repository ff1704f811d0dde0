"""``xgem eval``: measure a checkpoint's routes, and the labeller that measures them; sets: ``xgem.cli.measures``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from xgem.checkpoints.locate import CONTROL_MODEL
from xgem.cli import measures
from xgem.cli.options import (
    AsJson,
    BatchSize,
    Cache,
    Data,
    Device,
    Draws,
    Dtype,
    Epochs,
    Guidance,
    Limit,
    Model,
    Out,
    Overwrite,
    Progress,
    Sampler,
    Seed,
    Split,
    Steps,
    parse_guidance,
)

app = typer.Typer(
    help="Measure a checkpoint, or sets of generated studies.", no_args_is_help=True, add_completion=False
)
app.registered_commands += measures.app.registered_commands


@app.command()
def routes(
    data: Data,
    out: Out,
    model: Model = None,
    split: Split = "val",
    route: Annotated[
        list[str] | None,
        typer.Option("--route", help="Only this route, as F+L->T; may be repeated.", show_default="all"),
    ] = None,
    limit: Limit = None,
    seed: Seed = 0,
    num_samples: Annotated[int, typer.Option("--num-samples", help="Samples a study; measures are averaged.")] = 1,
    report_samples: Annotated[
        int | None, typer.Option("--report-samples", help="Samples of a report.", show_default="as --num-samples")
    ] = None,
    num_inference_steps: Steps = None,
    guidance_scale: Guidance = None,
    sampler: Sampler = None,
    batch_size: BatchSize = 32,
    bootstrap: Draws = 1000,
    diversity_prompts: Annotated[
        int, typer.Option("--diversity-prompts", help="Prompts for diversity; 0 skips it.")
    ] = 16,
    classifier_epochs: Epochs = 10,
    cache: Cache = None,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Run every single-output route and print what it measures, with bootstrap intervals.

    Each route is measured against its prompts and against the study's real target, beside the control with other
    studies' prompts. OUT receives routes.json, routes.csv, routes.md, the generated reports and contact sheets; the
    sheets show real images, so keep them where the data may lie.
    """
    from xgem.data.manifest import Manifest
    from xgem.eval.route import parse_route
    from xgem.eval.routes import RunSettings, evaluate_routes
    from xgem.judges.classifier import ClassifierConfig
    from xgem.pipeline.embedding import open_model

    settings = RunSettings(
        seed=seed,
        limit=limit,
        num_samples=num_samples,
        report_samples=report_samples,
        num_inference_steps=num_inference_steps,
        guidance_scale=parse_guidance(guidance_scale),
        sampler=sampler,
        batch_size=batch_size,
        bootstrap=bootstrap,
        diversity_prompts=diversity_prompts,
        classifier=ClassifierConfig(epochs=classifier_epochs),
    )
    manifest = Manifest.read(data)
    manifest.check()
    evaluated = open_model(model, device=device, dtype=dtype)
    wanted = [parse_route(one, evaluated.modalities) for one in route] if route else None
    evaluation = evaluate_routes(
        evaluated,
        manifest,
        split=split,
        out=out,
        settings=settings,
        routes=wanted,
        cache=cache,
        overwrite=overwrite,
        device=str(getattr(evaluated.pipe, "device", "cpu")),
        progress=progress,
    )
    if as_json:
        typer.echo(evaluation.json())
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    for table in evaluation.tables():
        console.print(table)


@app.command()
def joint(
    data: Data,
    out: Out,
    model: Model = None,
    split: Split = "val",
    limit: Limit = None,
    seed: Seed = 0,
    num_samples: Annotated[int, typer.Option("--num-samples", help="Samples a study; agreement is averaged.")] = 1,
    num_inference_steps: Steps = None,
    guidance_scale: Guidance = None,
    sampler: Sampler = None,
    batch_size: BatchSize = 32,
    bootstrap: Draws = 1000,
    classifier_epochs: Epochs = 10,
    cache: Cache = None,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Measure how well several outputs of one request agree: joint beside independent sampling.

    From each modality to the two others, and from nothing to all three: cosine of every two outputs, the rank of the
    own image, the distance of label sets, beside shuffled outputs and real pairs, and each output's own quality. OUT
    receives joint.json, joint.md and plots.
    """
    from xgem.data.manifest import Manifest
    from xgem.eval.joint import evaluate_joint
    from xgem.eval.routes import RunSettings
    from xgem.judges.classifier import ClassifierConfig
    from xgem.pipeline.embedding import open_model

    settings = RunSettings(
        seed=seed,
        limit=limit,
        num_samples=num_samples,
        num_inference_steps=num_inference_steps,
        guidance_scale=parse_guidance(guidance_scale),
        sampler=sampler,
        batch_size=batch_size,
        bootstrap=bootstrap,
        classifier=ClassifierConfig(epochs=classifier_epochs),
    )
    manifest = Manifest.read(data)
    manifest.check()
    evaluated = open_model(model, device=device, dtype=dtype)
    evaluation = evaluate_joint(
        evaluated,
        manifest,
        split=split,
        out=out,
        settings=settings,
        cache=cache,
        overwrite=overwrite,
        device=str(getattr(evaluated.pipe, "device", "cpu")),
        progress=progress,
    )
    typer.echo(evaluation.json() if as_json else evaluation.markdown())


@app.command()
def control(
    data: Data,
    out: Out,
    model: Annotated[str, typer.Option("--model", help="Embedded checkpoint, folder or hub id.")] = CONTROL_MODEL,
    judge: Annotated[
        str | None,
        typer.Option("--judge", help="Checkpoint whose encoders judge images.", show_default="openi-128"),
    ] = None,
    split: Split = "val",
    limit: Limit = None,
    seed: Seed = 0,
    num_samples: Annotated[int, typer.Option("--num-samples", help="Samples a study; measures are averaged.")] = 1,
    num_inference_steps: Steps = None,
    guidance_scale: Guidance = None,
    sampler: Sampler = None,
    batch_size: BatchSize = 32,
    bootstrap: Draws = 1000,
    classifier_epochs: Epochs = 10,
    segmenter_epochs: Annotated[int, typer.Option("--segmenter-epochs", help="Epochs of the judge of masks.")] = 40,
    patient_epochs: Annotated[int, typer.Option("--patient-epochs", help="Epochs of the judge of age and sex.")] = 15,
    cache: Cache = None,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Measure whether generated frontals show what was asked for: masks, boxes, severity, demographics, text.

    Each input is given alone and stands beside a control with shuffled inputs and a ceiling from real images. What
    the split has no studies for is left out, with the reason. The judges are trained first, on all training studies
    whatever the limit, and kept in the cache. OUT receives control.json, control.md and contact sheets; the sheets show
    real images, so keep them where the data may lie.
    """
    from xgem.data.manifest import Manifest
    from xgem.eval.control import evaluate_control
    from xgem.eval.control_run import ControlSettings
    from xgem.judges.classifier import ClassifierConfig
    from xgem.judges.segmenter import SegmenterConfig
    from xgem.pipeline.embedding import open_model

    defaults = ControlSettings(
        seed=seed,
        limit=limit,
        num_samples=num_samples,
        num_inference_steps=num_inference_steps,
        guidance_scale=parse_guidance(guidance_scale),
        sampler=sampler,
        batch_size=batch_size,
        bootstrap=bootstrap,
        classifier=ClassifierConfig(epochs=classifier_epochs),
        segmenter=SegmenterConfig(epochs=segmenter_epochs),
    )
    settings = replace(defaults, patient=replace(defaults.patient, epochs=patient_epochs))
    manifest = Manifest.read(data)
    manifest.check()
    evaluated = open_model(model, device=device, dtype=dtype)
    evaluation = evaluate_control(
        evaluated,
        open_model(judge, device=device),
        manifest,
        split=split,
        out=out,
        settings=settings,
        cache=cache,
        overwrite=overwrite,
        device=str(getattr(evaluated.pipe, "device", "cpu")),
        progress=progress,
    )
    typer.echo(evaluation.json() if as_json else evaluation.markdown())


@app.command()
def card(
    model: Annotated[Path, typer.Option("--model", metavar="DIR", help="The checkpoint that was measured.")],
    evaluation: Annotated[
        Path | None,
        typer.Argument(metavar="DIR", help="Run folder of `xgem eval routes` and `joint`; without it: not measured."),
    ] = None,
    notes: Annotated[
        Path | None, typer.Option("--notes", help="Markdown on data, licence and limits, to be part of the card.")
    ] = None,
    readme: Annotated[
        Path | None, typer.Option("--readme", help="Put the tables between its results marks too.")
    ] = None,
) -> None:
    """Write the model card of a checkpoint from its evaluation."""
    from xgem.eval.card import write_card

    typer.echo(str(write_card(model, evaluation, notes=notes, readme=readme)))


@app.command()
def labeller(
    data: Data,
    split: Annotated[str | None, typer.Option("--split", help="Only this split.", show_default="all")] = None,
    as_json: AsJson = False,
) -> None:
    """Check the rule labeller against the annotators' labels: precision and recall by class."""
    import json

    from xgem.data.manifest import Manifest
    from xgem.eval.labeller_check import check_labeller

    checked = check_labeller(Manifest.read(data).studies(split))
    if as_json:
        typer.echo(json.dumps(checked, indent=2))
        return
    typer.echo(f"{checked['labeller']} against the annotators' labels, findings and impression, n = {checked['n']}")
    typer.echo(f"{'class':28} {'annotated':>9} {'labelled':>9} {'precision':>9} {'recall':>9}")
    for name, one in checked["classes"].items():
        precision, recall = (f"{one[key]:.3f}" if one[key] is not None else "-" for key in ("precision", "recall"))
        typer.echo(f"{name:28} {one['annotated']:9d} {one['labelled']:9d} {precision:>9} {recall:>9}")
