"""``xgem eval``: measure a checkpoint's routes, and the labeller that measures them; sets: ``xgem.cli.measures``."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xgem.checkpoints.locate import CONTROL_MODEL
from xgem.cli import measures, records
from xgem.cli.grouped import grouped
from xgem.cli.options import (
    AsJson,
    BatchSize,
    Cache,
    Candidates,
    Compile,
    Data,
    Device,
    Draws,
    Dtype,
    Epochs,
    Guidance,
    GuidanceEnd,
    GuidanceRescale,
    GuidanceStart,
    JudgeSource,
    Limit,
    Model,
    Out,
    Overwrite,
    Progress,
    Sampler,
    Seed,
    Split,
    Steps,
    at_least,
    parse_guidance,
)
from xgem.cli.set_options import Labeller, write_and_print

if TYPE_CHECKING:
    from collections.abc import Callable

    from xgem.eval.cohorts import Sampling
    from xgem.eval.record import FamilyResult

app = typer.Typer(
    help="Evaluate a checkpoint, or sets of generated studies.", no_args_is_help=True, add_completion=False
)
app.registered_commands += measures.app.registered_commands

ReportSamples = Annotated[
    int | None,
    typer.Option(
        "--report-samples", metavar="N", help="Samples per study of a report.", show_default="as --num-samples"
    ),
]


@dataclass(frozen=True, kw_only=True)
class HowSampled:
    """Sampling settings of an evaluation."""

    seed: Seed = 0
    num_inference_steps: Steps = None
    guidance_scale: Guidance = None
    guidance_start: GuidanceStart = None
    guidance_end: GuidanceEnd = None
    guidance_rescale: GuidanceRescale = None
    sampler: Sampler = None
    num_candidates: Candidates = 1
    batch_size: BatchSize = 32
    compile: Compile = False

    def sampling(self, limit: int | None = None) -> Sampling:
        """The settings as the evaluations take them."""
        from xgem.eval.cohorts import Sampling

        given = {field.name: getattr(self, field.name) for field in fields(HowSampled)}
        given["guidance_scale"] = parse_guidance(self.guidance_scale)
        return Sampling(**given, limit=limit)


@dataclass(frozen=True, kw_only=True)
class Generation(HowSampled):
    """Data, sampling settings and output folder of an evaluation."""

    data: Data
    out: Out
    split: Split = "val"
    limit: Limit = None
    num_samples: Annotated[
        int, typer.Option("--num-samples", metavar="N", help="Samples per study; numbers are means over them.")
    ] = 1
    bootstrap: Draws = 1000
    classifier_epochs: Epochs = 10
    cache: Cache = None
    device: Device = None
    dtype: Dtype = None
    overwrite: Overwrite = False
    progress: Progress = True
    as_json: AsJson = False

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that all evaluations of a checkpoint have."""
        from xgem.judges.classifier import ClassifierConfig

        return {
            "sampling": self.sampling(self.limit),
            "num_samples": self.num_samples,
            "bootstrap": self.bootstrap,
            "classifier": ClassifierConfig(epochs=self.classifier_epochs),
        }

    def run(
        self,
        stem: str,
        evaluate: Callable[..., tuple[dict[str, Any], list[FamilyResult]]],
        model: str | None,
        **more: Any,
    ) -> None:
        """Evaluate ``model``, write the results, and print them."""
        names = ("split", "cache", "device", "dtype", "progress")
        options = {name: getattr(self, name) for name in names} | more
        work = lambda: evaluate(model, self.data, self.out, **options)  # noqa: E731
        write_and_print(stem, self.out, self.overwrite, self.as_json, work)


@app.command()
@grouped
def routes(
    generation: Generation,
    model: Model = None,
    route: Annotated[
        list[str] | None,
        typer.Option(
            "--route", metavar="A+B->C", help="Only this route, as F+L->T; may be repeated.", show_default="all"
        ),
    ] = None,
    judge: JudgeSource = None,
    report_samples: ReportSamples = None,
    diversity_prompts: Annotated[
        int,
        typer.Option(
            "--diversity-prompts", metavar="N", help="Number of prompts for the diversity measure; 0 skips it."
        ),
    ] = 16,
) -> None:
    """Generate a cohort for every single-output route and measure it, with bootstrap intervals.

    Each route is compared with its prompts and with the study's real target; the control has other studies' prompts.
    OUT receives routes.json, .csv, .md and .html, the cohorts, and contact sheets, which show real images. If it was
    stopped, the same command resumes with the cohorts that are there.
    """
    from xgem.eval.routes import RunSettings, evaluate_routes

    counts = {"report_samples": report_samples, "diversity_prompts": diversity_prompts}
    settings = RunSettings(**generation.settings, **counts, judge=judge)
    generation.run("routes", evaluate_routes, model, settings=settings, routes=route)


@app.command()
@grouped
def joint(
    generation: Generation, model: Model = None, judge: JudgeSource = None, report_samples: ReportSamples = None
) -> None:
    """Measure how well several outputs of one request agree: joint against independent sampling.

    From each modality to the two others, and from nothing to all three: cosine of every two outputs, rank of the own
    image and distance of label sets, with shuffled outputs and real pairs as references, and each output's own quality.
    OUT receives joint.json, .csv, .md and .html, and the cohorts; those of `xgem eval routes` in the same OUT are used.
    """
    from xgem.eval.joint import evaluate_joint
    from xgem.eval.routes import RunSettings

    settings = RunSettings(**generation.settings, report_samples=report_samples, judge=judge)
    generation.run("joint", evaluate_joint, model, settings=settings)


@app.command()
@grouped
def control(
    generation: Generation,
    model: Annotated[
        str, typer.Option("--model", metavar="NAME", help="Embedded checkpoint, folder or hub id.")
    ] = CONTROL_MODEL,
    judge: Annotated[
        str | None,
        typer.Option(
            "--judge", metavar="NAME", help="Checkpoint whose encoders evaluate images.", show_default="openi-256"
        ),
    ] = None,
    segmenter_epochs: Annotated[
        int,
        typer.Option("--segmenter-epochs", metavar="N", help="Training epochs of the segmenter that evaluates masks."),
    ] = 40,
    patient_epochs: Annotated[
        int,
        typer.Option(
            "--patient-epochs", metavar="N", help="Training epochs of the network that evaluates age and sex."
        ),
    ] = 15,
    judge_seed: Annotated[
        int,
        typer.Option(
            "--judge-seed", metavar="N", min=0, help="Seed of the judges that are trained; the images stay as they are."
        ),
    ] = 0,
) -> None:
    """Measure whether generated frontals show what was requested: masks, boxes, severity, demographics, text.

    Each input is given alone; references are shuffled inputs and the study's own real image. What the split has no
    studies for is reported as not computed, with the reason. Judges are trained on all training studies, whatever the
    limit, and kept in the cache. OUT receives control.json, .csv, .md, and .html, which shows real images.
    """
    from xgem.eval.control import ControlSettings, evaluate_control
    from xgem.judges.segmenter import SegmenterConfig

    defaults = ControlSettings(
        **generation.settings, segmenter=SegmenterConfig(epochs=segmenter_epochs, seed=judge_seed)
    )
    settings = replace(defaults, patient=replace(defaults.patient, epochs=patient_epochs, seed=judge_seed))
    generation.run("control", evaluate_control, model, settings=settings, judge=judge)


@app.command()
def codec(
    data: Data,
    out: Out,
    model: Model = None,
    split: Split = "val",
    seed: Seed = 0,
    bootstrap: Draws = 1000,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Measure what the report codec alone loses: exact reports, words, and words that no training report has.

    Real reports are encoded and decoded; no generator behind the codec can do better. For all reports, for studies
    without and with annotated findings, and by length. OUT receives codec.json, .csv, .md and .html.
    """
    from xgem.eval.codec import evaluate_codec

    options: dict[str, Any] = {"split": split, "draws": bootstrap, "seed": seed, "device": device}
    write_and_print("codec", out, overwrite, as_json, lambda: evaluate_codec(model, data, **options))


@app.command()
@grouped
def prompts(
    sampled: HowSampled,
    data: Data,
    out: Out,
    model: Model = None,
    split: Split = "val",
    seeds: Annotated[
        int, typer.Option("--seeds", metavar="N", callback=at_least(2), help="Images of each sentence.")
    ] = 16,
    sentences: Annotated[
        Path | None,
        typer.Option(
            "--sentences",
            metavar="CSV",
            help="Sentences of your own: columns sentence, findings, side, partner.",
            show_default="42 that ship with xgem",
        ),
    ] = None,
    judge: JudgeSource = None,
    sides: Annotated[
        Path | None,
        typer.Option(
            "--side-judge", metavar="DIR", help="Judge of sides.", show_default="the one that ships with xgem"
        ),
    ] = None,
    bootstrap: Draws = 1000,
    cache: Cache = None,
    device: Device = None,
    dtype: Dtype = None,
    overwrite: Overwrite = False,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Measure whether a frontal shows what a sentence asked for: the finding, its side, a chest at all.

    Every sentence is given alone, with several seeds; sample k of every sentence starts from the same noise. References
    are the same judges on real images and sentences that are exchanged. OUT receives prompts.json, .csv, .md, .html and
    .png (a contact sheet of sentences and seeds), and the images, with which the same command resumes.
    """
    from xgem.eval.prompts import PromptSettings, evaluate_prompts
    from xgem.eval.sentences import SENTENCES, read_sentences

    settings = PromptSettings(sampled.sampling(), seeds, bootstrap, judge, sides)
    options = {"split": split, "settings": settings, "cache": cache, "device": device, "dtype": dtype}
    options |= {"progress": progress, "sentences": read_sentences(sentences) if sentences else SENTENCES}
    write_and_print("prompts", out, overwrite, as_json, lambda: evaluate_prompts(model, data, out, **options))


@app.command()
def card(
    model: Annotated[Path, typer.Option("--model", metavar="DIR", help="The evaluated checkpoint.")],
    evaluation: Annotated[
        Path | None,
        typer.Argument(
            metavar="DIR",
            help="Run folder of `xgem eval routes` and `joint`; without it, results are marked as not measured.",
        ),
    ] = None,
    notes: Annotated[
        Path | None,
        typer.Option("--notes", help="Markdown file on data, licence and limitations, to include in the card."),
    ] = None,
    readme: Annotated[
        Path | None, typer.Option("--readme", help="README whose results section is also updated.")
    ] = None,
) -> None:
    """Write the model card of a checkpoint from its evaluation."""
    from xgem.eval.card import write_card

    typer.echo(str(write_card(model, evaluation, notes=notes, readme=readme)))


@app.command()
def judge(
    data: Data,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the judge, for --judge.")],
    view: Annotated[str, typer.Option("--view", metavar="NAME", help="View of the images.")] = "frontal",
    split: Split = "val",
    epochs: Epochs = 10,
    cache: Cache = None,
    device: Device = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a judge of findings on split train, and measure it on other patients: AUROC by class."""
    import logging

    from xgem.data.set_files import read_set
    from xgem.judges.classifier import ClassifierConfig
    from xgem.judges.saved import make_judge
    from xgem.metrics.bootstrap import Estimate
    from xgem.utils.devices import resolve_device
    from xgem.utils.files import check_output_folder

    check_output_folder(out, overwrite=overwrite)
    logging.getLogger("xgem").setLevel(logging.INFO)
    training, held_out = (read_set(data, split=name, view=view, pad=True, name=name) for name in ("train", split))
    config = ClassifierConfig(epochs=epochs)
    auroc = make_judge(training, held_out, out, config=config, cache=cache, device=str(resolve_device(device)))
    typer.echo(f"{'class':28} {'positives':>9} {'labelled':>9}  AUROC [95 %] on {split}")
    for name, found in auroc.items():
        value = found["auroc"]
        shown = value if isinstance(value, str) else Estimate(**value)
        typer.echo(f"{name:28} {found.get('positives', ''):>9} {found.get('labelled', ''):>9}  {shown}")


@app.command("labeller")
def check_labels(
    data: Data,
    split: Annotated[str | None, typer.Option("--split", help="Restrict to this split.", show_default="all")] = None,
    labeller: Labeller = None,
    as_json: AsJson = False,
) -> None:
    """Check a labeller of reports (xgem's rules) against the annotators' labels: precision and recall by class."""
    import json

    from xgem.data.manifest import Manifest
    from xgem.eval.labeller_check import check_labeller
    from xgem.judges.chat_roles import ChatLabeller, open_endpoint

    chosen = None if labeller is None else ChatLabeller(open_endpoint(labeller))
    checked = check_labeller(Manifest.read(data).studies(split), chosen)
    if as_json:
        typer.echo(json.dumps(checked, indent=2))
        return
    typer.echo(f"{checked['labeller']} against the annotators' labels, findings and impression, n = {checked['n']}")
    typer.echo(f"{'class':28} {'annotated':>9} {'labelled':>9} {'precision':>9} {'recall':>9}")
    for name, counts in checked["classes"].items():
        rates = (counts[key] for key in ("precision", "recall"))
        precision, recall = ("-" if rate is None else f"{rate:.3f}" for rate in rates)
        typer.echo(f"{name:28} {counts['annotated']:9d} {counts['labelled']:9d} {precision:>9} {recall:>9}")


app.registered_commands += records.app.registered_commands
