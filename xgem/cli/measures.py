"""``xgem eval FAMILY``: measure sets of generated radiographs and reports against real ones."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from xgem.cli.grouped import grouped
from xgem.cli.options import (
    AsJson,
    Cache,
    Data,
    Device,
    Draws,
    JudgeSource,
    Limit,
    Model,
    Out,
    Overwrite,
    Progress,
    Seed,
    Split,
)
from xgem.cli.set_options import (
    Downstream,
    Extractors,
    Labeller,
    Real,
    Reid,
    Sets,
    TextWeights,
    Training,
    Xrv,
    is_manifest,
    write_and_print,
)
from xgem.types import InputError

if TYPE_CHECKING:
    from xgem.eval.record import FamilyResult

app = typer.Typer()


class TaskChoice(StrEnum):
    """Downstream tasks."""

    classification = "classification"
    segmentation = "segmentation"
    detection = "detection"
    severity = "severity"


@app.command()
@grouped
def fidelity(
    real: Real,
    sets: Sets,
    training: Training = None,
    extractor: Extractors = None,
    judge: JudgeSource = None,
    per_finding: Annotated[bool, typer.Option(help="Also for the images of each finding.")] = True,
    note: Annotated[
        str, typer.Option("--note", metavar="TEXT", help="Column `Extra Info` of CheXGenBench's tables.")
    ] = "",
) -> None:
    """FID, KID, precision, recall, density, coverage, alignment and diversity, overall and per finding."""
    from xgem.eval.families import fidelity as family
    from xgem.eval.instruments import open_extractors
    from xgem.eval.spaces import Settings

    def work() -> FamilyResult:
        truth, generated, known = sets.read_all(real, training)
        return family.evaluate(
            truth,
            generated,
            extractors=open_extractors(extractor, sets.view, known, sets.folder, sets.place, judge=judge),
            training=known,
            cache=sets.folder,
            per_finding=per_finding,
            settings=Settings(seed=sets.seed, bootstrap=sets.bootstrap),
            device=sets.place,
            note=note,
        )

    sets.run("fidelity", work)


@app.command()
@grouped
def text(
    real: Real,
    sets: Sets,
    weights: TextWeights,
    training: Training = None,
    real_labels: Annotated[
        Path | None, typer.Option("--real-labels", metavar="CSV", help="Labels of the real reports, by id.")
    ] = None,
    generated_labels: Annotated[
        Path | None, typer.Option("--generated-labels", metavar="CSV", help="Labels of the generated reports, by id.")
    ] = None,
) -> None:
    """BLEU, ROUGE-L, label F1 by every labeller available, RadGraph-F1, RaTEScore, and BLEU within a study."""
    from xgem.eval.families import text as family
    from xgem.judges.report_labellers import read_label_table

    if (real_labels is None) != (generated_labels is None):
        raise InputError("--real-labels and --generated-labels: expected both or neither")

    def work() -> FamilyResult:
        named = weights.weights()
        labellers = named.labellers(sets.place)
        if real_labels is not None and generated_labels is not None:
            tables = family.Tables(read_label_table(generated_labels), read_label_table(real_labels))
            labellers[generated_labels.stem] = tables
        truth, generated, known = sets.read_all(real, training, pad=True)
        external = named.external()
        return family.evaluate(truth, generated, training=known, labellers=labellers, external=external, **sets.draws)

    sets.run("text", work)


@app.command()
@grouped
def factual(real: Real, sets: Sets, training: Training = None, judge: JudgeSource = None, xrv: Xrv = None) -> None:
    """Whether generated images show their studies' findings: AUROC, F1 and correlation by judges of real images."""
    from xgem.data.sets import pairs
    from xgem.eval.families import factual as family
    from xgem.eval.instruments import judges_of, xrv_of

    def work() -> FamilyResult:
        truth, generated, known = sets.read_all(real, training)
        pairs(truth, generated)  # before a judge is trained
        judges = judges_of(judge, sets.view, known, xrv_of(xrv, sets.place), sets.folder, sets.place)
        return family.evaluate(truth, generated, judges=judges, **sets.draws)

    sets.run("factual", work)


@app.command()
@grouped
def consistency(
    real: Real,
    sets: Sets,
    independent: Annotated[
        Path | None,
        typer.Option("--independent", metavar="SET", help="The same studies, image and report sampled separately."),
    ] = None,
    training: Training = None,
    judge: JudgeSource = None,
    xrv: Xrv = None,
    labeller: Labeller = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", metavar="NAME", help="Checkpoint whose prompt encoders embed.", show_default="openi-256"
        ),
    ] = None,
) -> None:
    """Whether image and report of one generation agree: cosine of prompt encoders, distance of label sets."""
    from xgem.data.sets import pairs
    from xgem.eval.families import consistency as family
    from xgem.eval.instruments import judges_of, xrv_of
    from xgem.judges.chat_roles import ChatLabeller, open_endpoint
    from xgem.pipeline.embedding import PromptEncoders, open_model

    def work() -> FamilyResult:
        truth, generated, known = sets.read_all(real, training)
        pairs(truth, generated)  # before a judge is trained
        encoders = PromptEncoders.of(open_model(model, device=sets.device), sets.view)
        return family.evaluate(
            truth.with_images().with_reports(),
            generated,
            encoders=encoders,
            judges=judges_of(judge, sets.view, known, xrv_of(xrv, sets.place), sets.folder, sets.place),
            independent=None if independent is None else sets.read(independent, "independent"),
            labeller=None if labeller is None else ChatLabeller(open_endpoint(labeller)),
            **sets.draws,
        )

    sets.run("consistency", work)


@app.command()
@grouped
def privacy(
    sets: Sets,
    training: Annotated[
        Path, typer.Option("--training", metavar="SET", help="All studies that the model was trained on.")
    ],
    held_out: Annotated[
        Path | None,
        typer.Option(
            "--held-out",
            metavar="SET",
            help="Real images of patients not in the training set.",
            show_default="--training's split --split",
        ),
    ] = None,
    extractor: Extractors = None,
    judge: JudgeSource = None,
    reid: Reid = None,
    own_prompt: Annotated[
        bool,
        typer.Option(
            "--own-prompt", help="Compare with the image of the own prompt alone, as the published code does."
        ),
    ] = False,
) -> None:
    """Distance of generations to the closest training image, re-identification, and tests of memorisation."""
    from xgem.eval.families import privacy as family
    from xgem.eval.instruments import open_extractors
    from xgem.judges.reid import load_reid

    def work() -> FamilyResult:
        generated = sets.read(sets.generated, "generated", labels="auto")
        known = sets.read(training, "training", "train", labels="auto")
        source = held_out or (training if is_manifest(training) else None)
        unseen = None if source is None else sets.read(source, "held-out", sets.split, labels="auto")
        return family.evaluate(
            generated,
            known,
            unseen,
            extractors=open_extractors(extractor, sets.view, known, sets.folder, sets.place, judge=judge),
            reid=None if reid is None else load_reid(reid, device=sets.place),
            own_prompt=own_prompt,
            cache=sets.folder,
            seed=sets.seed,
            bootstrap=sets.bootstrap,
            device=sets.place,
        )

    sets.run("privacy", work)


@app.command()
@grouped
def utility(
    downstream: Downstream,
    sets: Sets,
    task: Annotated[TaskChoice, typer.Option("--task", help="Downstream task.")] = TaskChoice.classification,
    suite: Annotated[
        str,
        typer.Option(
            "--suite",
            metavar="NAME",
            help="augmentation, substitution, anonymisation, imbalance, scarcity, pretraining or few-shot.",
        ),
    ] = "augmentation",
    weights: Annotated[
        str | None,
        typer.Option("--weights", metavar="FILE", help="Initial weights: a file, or imagenet.", show_default="random"),
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option("--classes", metavar="NAMES", help="Findings, structures or box classes: Edema,Fracture."),
    ] = None,
    multiples: Annotated[
        str | None,
        typer.Option("--multiples", metavar="X,...", help="augmentation, scarcity: synthetic images per real: 1,5."),
    ] = None,
    fractions: Annotated[
        str | None,
        typer.Option("--fractions", metavar="X,...", help="scarcity, pretraining: shares of the real images: 0.1,1."),
    ] = None,
    shots: Annotated[
        str | None, typer.Option("--shots", metavar="N,...", help="few-shot: positives of each class: 1,5,10.")
    ] = None,
) -> None:
    """Value of generated studies as training data: networks trained with and without them, tested on real studies."""
    from xgem.eval.families import utility as family
    from xgem.judges.tasks.data import studies_of

    settings = downstream.training(sets, task.value, weights=weights)
    amounts = {
        "multiples": _numbers("--multiples", multiples, float),
        "fractions": _numbers("--fractions", fractions, float),
        "shots": _numbers("--shots", shots, int),
    }

    def work() -> FamilyResult:
        paths = (downstream.real, sets.generated, downstream.test)
        manifests = [path for path in paths if path is not None and is_manifest(path)]
        return family.evaluate(
            *downstream.read(sets),
            settings,
            suite=suite,
            classes=None if classes is None else [name.strip() for name in classes.split(",") if name.strip()],
            suite_options={name: values for name, values in amounts.items() if values},
            studies=studies_of(manifests) if manifests else None,
            cache=sets.folder,
            device=sets.place,
        )

    sets.run("utility", work)


def _numbers(option: str, text: str | None, kind: type[float]) -> list[float]:
    """The positive numbers of a list such as ``1,5``; empty where the option is not given."""
    try:
        values = [kind(part) for part in (text or "").split(",") if part.strip()]
    except ValueError:
        values = [-1.0]
    if any(not 0 < value < math.inf for value in values):
        raise InputError(f"{option} {text}: expected positive numbers with commas between them")
    return values


@app.command()
@grouped
def fairness(
    downstream: Downstream,
    sets: Sets,
    axes: Annotated[
        str, typer.Option("--axes", metavar="NAMES", help="Axes whose subgroups are topped up: sex, race, age.")
    ] = "sex,age",
    share: Annotated[
        float, typer.Option("--share", metavar="X", help="Top up to this share of the largest subgroup.")
    ] = 1.0,
) -> None:
    """Gaps between subgroups: of a classifier trained on real studies, and of one with subgroups topped up."""
    from xgem.eval.suite import fairness as evaluate

    settings = downstream.training(sets, "classification")
    names = [name.strip() for name in axes.split(",") if name.strip()]
    options = {"axes": names, "share": share, "cache": sets.folder, "device": sets.place}
    sets.run("fairness", lambda: evaluate(*downstream.read(sets), settings, **options))


@app.command(name="all")
@grouped
def everything(
    data: Data,
    out: Out,
    weights: TextWeights,
    model: Model = None,
    split: Split = "val",
    extractor: Extractors = None,
    judge: JudgeSource = None,
    reid: Reid = None,
    xrv: Xrv = None,
    limit: Limit = None,
    training_limit: Annotated[
        int,
        typer.Option(
            "--training-limit", metavar="N", help="Generations from training prompts, for privacy and utility."
        ),
    ] = 1000,
    runs: Annotated[int, typer.Option("--runs", metavar="N", help="Training runs per protocol of utility.")] = 3,
    seed: Seed = 0,
    bootstrap: Draws = 1000,
    cache: Cache = None,
    device: Device = None,
    overwrite: Overwrite = False,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Generate what the metrics need with a checkpoint, and measure all families against a manifest's real studies.

    OUT receives all.json, .csv, .md and a report in one file, all.html, which shows real images. If it was stopped, the
    same command resumes with the cohorts that are there.
    """
    from xgem.eval.suite import SuiteSettings, evaluate_all

    settings = SuiteSettings(
        seed=seed, bootstrap=bootstrap, limit=limit, training_limit=training_limit, utility_runs=runs
    )
    options = {
        "split": split,
        "settings": settings,
        "weights": weights.weights(extractors=extractor, judge=judge, reid=reid, xrv=xrv),
        "cache": cache,
        "device": device,
        "progress": progress,
    }
    write_and_print("all", out, overwrite, as_json, lambda: evaluate_all(model, data, out, **options))
