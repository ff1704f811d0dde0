"""``xgem eval``: measure a checkpoint's routes, and the labeller that measures them; sets: ``xgem.cli.measures``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from xgem.eval.cohorts import Sampling
    from xgem.eval.record import FamilyResult

Samples = Annotated[int, typer.Option("--num-samples", help="Samples per study; numbers are means over them.")]

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
    num_samples: Samples = 1,
    report_samples: Annotated[
        int | None,
        typer.Option("--report-samples", help="Samples per study of a report.", show_default="as --num-samples"),
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
    """Generate a cohort for every single-output route and measure it, with bootstrap intervals.

    Each route is compared with its prompts and with the study's real target; the control has other studies' prompts.
    OUT receives routes.json, .csv, .md and .html, the cohorts, and contact sheets, which show real images. Stopped, the
    same command goes on with the cohorts that it has.
    """
    from xgem.eval.routes import RunSettings, evaluate_routes
    from xgem.judges.classifier import ClassifierConfig

    settings = RunSettings(
        sampling=_sampling(seed, limit, num_inference_steps, guidance_scale, sampler, batch_size),
        num_samples=num_samples,
        report_samples=report_samples,
        bootstrap=bootstrap,
        diversity_prompts=diversity_prompts,
        classifier=ClassifierConfig(epochs=classifier_epochs),
    )
    _run(
        "routes",
        out,
        overwrite,
        as_json,
        lambda: evaluate_routes(
            model,
            data,
            out,
            split=split,
            settings=settings,
            routes=route,
            cache=cache,
            device=device,
            dtype=dtype,
            progress=progress,
        ),
    )


@app.command()
def joint(
    data: Data,
    out: Out,
    model: Model = None,
    split: Split = "val",
    limit: Limit = None,
    seed: Seed = 0,
    num_samples: Samples = 1,
    report_samples: Annotated[
        int | None,
        typer.Option(
            "--report-samples", help="Samples per study of an independent report.", show_default="as --num-samples"
        ),
    ] = None,
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
    receives joint.json, .csv, .md and .html, and the cohorts; those of `xgem eval routes` in the same OUT are taken.
    """
    from xgem.eval.joint import evaluate_joint
    from xgem.eval.routes import RunSettings
    from xgem.judges.classifier import ClassifierConfig

    settings = RunSettings(
        sampling=_sampling(seed, limit, num_inference_steps, guidance_scale, sampler, batch_size),
        num_samples=num_samples,
        report_samples=report_samples,
        bootstrap=bootstrap,
        classifier=ClassifierConfig(epochs=classifier_epochs),
    )
    options: dict[str, Any] = {"split": split, "settings": settings, "cache": cache, "device": device, "dtype": dtype}
    _run("joint", out, overwrite, as_json, lambda: evaluate_joint(model, data, out, progress=progress, **options))


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
    num_samples: Samples = 1,
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
    """Measure whether generated frontals show what was requested: masks, boxes, severity, demographics, text.

    Each input is given alone; references are shuffled inputs and the study's own real image. What the split has no
    studies for is reported as not computed, with the reason. Judges are trained on all training studies, whatever the
    limit, and kept in the cache. OUT receives control.json, .csv, .md, and .html, which shows real images.
    """
    from xgem.eval.control import ControlSettings, evaluate_control
    from xgem.judges.classifier import ClassifierConfig
    from xgem.judges.segmenter import SegmenterConfig

    defaults = ControlSettings(
        sampling=_sampling(seed, limit, num_inference_steps, guidance_scale, sampler, batch_size),
        num_samples=num_samples,
        bootstrap=bootstrap,
        classifier=ClassifierConfig(epochs=classifier_epochs),
        segmenter=SegmenterConfig(epochs=segmenter_epochs),
    )
    settings = replace(defaults, patient=replace(defaults.patient, epochs=patient_epochs))
    options: dict[str, Any] = {"judge": judge, "split": split, "settings": settings, "cache": cache}
    options |= {"device": device, "dtype": dtype, "progress": progress}
    _run("control", out, overwrite, as_json, lambda: evaluate_control(model, data, out, **options))


def _sampling(
    seed: int, limit: int | None, steps: int | None, guidance: str | None, sampler: str | None, batch: int
) -> Sampling:
    from xgem.eval.cohorts import Sampling

    return Sampling(
        seed=seed,
        limit=limit,
        num_inference_steps=steps,
        guidance_scale=parse_guidance(guidance),
        sampler=sampler,
        batch_size=batch,
    )


def _run(
    stem: str,
    out: Path,
    overwrite: bool,
    as_json: bool,
    work: Callable[[], tuple[dict[str, Any], list[FamilyResult]]],
) -> None:
    """Do the work, write its results into ``out``, and print them."""
    from xgem.eval.report import as_json as json_of
    from xgem.eval.report import as_markdown, check_results_folder, write_results

    check_results_folder(out, stem, overwrite=overwrite)  # asked before the work, not after it
    about, results = work()
    write_results(results, out, stem, settings=about, overwrite=overwrite)
    typer.echo(json_of(results, about) if as_json else as_markdown(results))


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
