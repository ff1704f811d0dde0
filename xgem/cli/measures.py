"""``xgem eval FAMILY``: measure sets of generated radiographs and reports against real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xgem.cli.options import AsJson, Cache, Device, Draws, Out, Overwrite, Progress, Seed
from xgem.types import InputError

if TYPE_CHECKING:
    from xgem.eval.record import FamilyResult
    from xgem.eval.sets import EvalSet

app = typer.Typer()


class LabelSource(StrEnum):
    """Where labels come from: the file, xgem's rules over the reports, or the file where it has any."""

    auto = "auto"
    file = "file"
    reports = "reports"


class TaskChoice(StrEnum):
    """Downstream tasks."""

    classification = "classification"
    segmentation = "segmentation"
    detection = "detection"
    severity = "severity"


Real = Annotated[Path, typer.Option("--real", metavar="SET", help="Real studies: a manifest, a folder or a CSV.")]
Generated = Annotated[
    Path, typer.Option("--generated", metavar="SET", help="What is measured: a cohort, a folder or a CSV.")
]
Training = Annotated[
    Path | None,
    typer.Option("--training", metavar="SET", help="Real training studies.", show_default="--real's split train"),
]
Split = Annotated[str, typer.Option("--split", help="Of a manifest: which studies are the real ones.")]
View = Annotated[str, typer.Option("--view", help="Of a manifest: frontal or lateral.")]
Labels = Annotated[LabelSource, typer.Option("--labels", help="The file's, of the reports by xgem's rules, or auto.")]
Pad = Annotated[bool, typer.Option("--pad", help="Take pictures of mixed sizes: pad each to a square and resize.")]
Extractors = Annotated[
    list[str] | None,
    typer.Option(
        "--extractor", metavar="NAME[=PATH]", help="A feature space; may be repeated.", show_default="published and own"
    ),
]
Xrv = Annotated[
    Path | None, typer.Option("--xrv", metavar="FILE", help="TorchXRayVision's DenseNet weights, as another judge.")
]
Judging = Annotated[
    str | None,
    typer.Option("--model", help="Checkpoint whose prompt encoders give the cosine.", show_default="openi-128"),
]


def _manifest(path: Path) -> bool:
    return path.suffix in {".parquet", ".jsonl"}


def _read(path: Path, split: str | None, view: str, labels: str, pad: bool, name: str) -> EvalSet:
    from xgem.eval.sets import read_set

    wanted: Any = labels
    return read_set(path, split=split if _manifest(path) else None, view=view, labels=wanted, pad=pad, name=name)


def _sets(
    real: Path, generated: Path, training: Path | None, split: str, view: str, labels: str, pad: bool
) -> tuple[EvalSet, EvalSet, EvalSet | None]:
    """The real, the generated and, where there are any, the training studies; overlaps are refused."""
    from xgem.eval.sets import check_disjoint

    found = _read(real, split, view, labels, pad, "real")
    made = _read(generated, None, view, labels, pad, "generated")
    check_disjoint(found, made)
    return found, made, _training(real, training, split, view, labels, pad)


def _training(real: Path, training: Path | None, split: str, view: str, labels: str, pad: bool) -> EvalSet | None:
    source = training or (real if _manifest(real) and split != "train" else None)
    return None if source is None else _read(source, "train", view, labels, pad, "training")


def _run(
    family: str, out: Path, overwrite: bool, as_json: bool, work: Callable[[], FamilyResult | list[FamilyResult]]
) -> None:
    """Do the work, write its results into ``out``, and print them."""
    from xgem.eval.record import as_json as json_of
    from xgem.eval.record import as_markdown, check_results_folder, write_results

    check_results_folder(out, family, overwrite=overwrite)  # asked before the work, not after it
    made = work()
    results = made if isinstance(made, list) else [made]
    write_results(results, out, family, overwrite=overwrite)
    typer.echo(json_of(results) if as_json else as_markdown(results))


def _judges(training: EvalSet | None, xrv: Path | None, cache: Path, device: str | None) -> dict[str, Any]:
    from xgem.eval.judges import OWN_JUDGE, load_xrv, train_judge
    from xgem.eval.record import NotComputed
    from xgem.eval.suite import or_reason

    def own() -> Any:
        if training is None:
            raise NotComputed("it is trained on real training pictures, of which none were given (--training)")
        return train_judge(training, folder=cache / "judges", device=device or "cpu")

    return {OWN_JUDGE: or_reason(own), "xrv": or_reason(lambda: load_xrv(xrv, device=device or "cpu"))}


@app.command()
def fidelity(
    real: Real,
    generated: Generated,
    out: Out,
    training: Training = None,
    extractor: Extractors = None,
    split: Split = "val",
    view: View = "frontal",
    labels: Labels = LabelSource.auto,
    pad: Pad = False,
    per_finding: Annotated[bool, typer.Option(help="Also for the pictures of each finding.")] = True,
    note: Annotated[str, typer.Option("--note", help="Extra Info of CheXGenBench's tables.")] = "",
    seed: Seed = 0,
    bootstrap: Draws = 1000,
    cache: Cache = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """FID, KID, precision, recall, density, coverage, alignment and diversity, whole and per finding, with floors."""
    from xgem.eval.families import fidelity as family
    from xgem.eval.spaces import Settings
    from xgem.eval.suite import extractor_names

    def work() -> FamilyResult:
        found, made, learnt = _sets(real, generated, training, split, view, labels, pad)
        return family.evaluate(
            found,
            made,
            extractors=extractor or extractor_names(view, learnt),
            training=learnt,
            cache=cache or out / "cache",
            per_finding=per_finding,
            settings=Settings(seed=seed, bootstrap=bootstrap),
            device=device,
            note=note,
        )

    _run("fidelity", out, overwrite, as_json, work)


@app.command()
def text(
    real: Real,
    generated: Generated,
    out: Out,
    training: Training = None,
    split: Split = "val",
    chexbert: Annotated[Path | None, typer.Option("--chexbert", metavar="FILE", help="CheXbert's weights.")] = None,
    chexbert_vocabulary: Annotated[
        Path | None, typer.Option("--chexbert-vocab", metavar="FILE", help="BERT's vocabulary (vocab.txt).")
    ] = None,
    real_labels: Annotated[
        Path | None, typer.Option("--real-labels", metavar="CSV", help="Labels of the real reports, by id.")
    ] = None,
    generated_labels: Annotated[
        Path | None, typer.Option("--generated-labels", metavar="CSV", help="Labels of the generated reports, by id.")
    ] = None,
    radgraph_python: Annotated[
        Path | None, typer.Option("--radgraph-python", metavar="FILE", help="A Python that has radgraph.")
    ] = None,
    ratescore_python: Annotated[
        Path | None, typer.Option("--ratescore-python", metavar="FILE", help="A Python that has RaTEScore.")
    ] = None,
    seed: Seed = 0,
    bootstrap: Draws = 1000,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """BLEU, ROUGE-L, label F1 by every labeller that is there, RadGraph-F1, RaTEScore, and BLEU within a study."""
    from xgem.eval.chexbert import load_chexbert
    from xgem.eval.external_text import ExternalMetric
    from xgem.eval.families import text as family
    from xgem.eval.report_labels import RuleLabeller, read_label_table
    from xgem.eval.suite import or_reason

    if (real_labels is None) != (generated_labels is None):
        raise InputError("--real-labels and --generated-labels: expected both or neither")
    labellers: dict[str, Any] = {RuleLabeller().name: RuleLabeller()}
    if real_labels is not None and generated_labels is not None:
        tables = family.Tables(read_label_table(generated_labels), read_label_table(real_labels))
        labellers[generated_labels.stem] = tables
    labellers["CheXbert"] = or_reason(lambda: load_chexbert(chexbert, chexbert_vocabulary, device=device or "cpu"))
    pythons = {"radgraph": radgraph_python, "ratescore": ratescore_python}
    external = {name: ExternalMetric(name, python) for name, python in pythons.items() if python is not None}

    def work() -> FamilyResult:
        found, made, learnt = _sets(real, generated, training, split, "frontal", "auto", True)
        return family.evaluate(
            found, made, training=learnt, labellers=labellers, external=external, draws=bootstrap, seed=seed
        )

    _run("text", out, overwrite, as_json, work)


@app.command()
def factual(
    real: Real,
    generated: Generated,
    out: Out,
    training: Training = None,
    xrv: Xrv = None,
    split: Split = "val",
    view: View = "frontal",
    labels: Labels = LabelSource.auto,
    pad: Pad = False,
    seed: Seed = 0,
    bootstrap: Draws = 1000,
    cache: Cache = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Whether generated pictures show their studies' findings: AUC, F1 and correlation by judges of real pictures."""
    from xgem.eval.families import factual as family

    def work() -> FamilyResult:
        found, made, learnt = _sets(real, generated, training, split, view, labels, pad)
        judges = _judges(learnt, xrv, cache or out / "cache", device)
        return family.evaluate(found, made, judges=judges, draws=bootstrap, seed=seed, size=128)

    _run("factual", out, overwrite, as_json, work)


@app.command()
def consistency(
    real: Real,
    generated: Generated,
    out: Out,
    independent: Annotated[
        Path | None,
        typer.Option("--independent", metavar="SET", help="The same studies, picture and report made apart."),
    ] = None,
    training: Training = None,
    xrv: Xrv = None,
    model: Judging = None,
    split: Split = "val",
    view: View = "frontal",
    labels: Labels = LabelSource.auto,
    pad: Pad = False,
    seed: Seed = 0,
    bootstrap: Draws = 1000,
    cache: Cache = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Whether the picture and the report of one generation agree: cosine of prompt encoders, distance of label sets."""
    from xgem.eval.consistency import PromptEncoders
    from xgem.eval.families import consistency as family
    from xgem.eval.material import open_model

    def work() -> FamilyResult:
        found, made, learnt = _sets(real, generated, training, split, view, labels, pad)
        encoders = PromptEncoders.of(open_model(model, device=device), view)
        return family.evaluate(
            found,
            made,
            encoders=encoders,
            judges=_judges(learnt, xrv, cache or out / "cache", device),
            independent=None if independent is None else _read(independent, None, view, labels, pad, "independent"),
            size=encoders.size,
            draws=bootstrap,
            seed=seed,
        )

    _run("consistency", out, overwrite, as_json, work)


@app.command()
def privacy(
    generated: Generated,
    training: Annotated[Path, typer.Option("--training", metavar="SET", help="All that the model was trained on.")],
    out: Out,
    held_out: Annotated[
        Path | None,
        typer.Option(
            "--held-out", metavar="SET", help="Real pictures of others.", show_default="--training's split val"
        ),
    ] = None,
    extractor: Extractors = None,
    reid: Annotated[
        Path | None,
        typer.Option("--reid", metavar="PATH", help="Re-identification network: trained here or published."),
    ] = None,
    own_prompt: Annotated[
        bool, typer.Option("--own-prompt", help="As the published code: only the picture whose prompt was used.")
    ] = False,
    view: View = "frontal",
    pad: Pad = False,
    seed: Seed = 0,
    bootstrap: Draws = 1000,
    cache: Cache = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Distance of generations to the closest training picture, re-identification, and tests of memorisation."""
    from xgem.eval.families import privacy as family
    from xgem.eval.reid import load_reid
    from xgem.eval.suite import open_extractors

    def work() -> FamilyResult:
        made = _read(generated, None, view, "auto", pad, "generated")
        learnt = _read(training, "train", view, "auto", pad, "training")
        source = held_out or (training if _manifest(training) else None)
        spared = None if source is None else _read(source, "val", view, "auto", pad, "held-out")
        folder = cache or out / "cache"
        spaces, missing = open_extractors(extractor, view, learnt, folder, device)
        result = family.evaluate(
            made,
            learnt,
            spared,
            extractors=spaces,
            reid=None if reid is None else load_reid(reid),
            own_prompt=own_prompt,
            cache=folder,
            seed=seed,
            bootstrap=bootstrap,
            device=device or "cpu",
        )
        return replace(result, metrics=[*result.metrics, *missing])

    _run("privacy", out, overwrite, as_json, work)


@app.command()
def utility(
    real: Annotated[
        Path, typer.Option("--real", metavar="SET", help="Real training studies (a manifest's split train).")
    ],
    generated: Generated,
    test: Annotated[
        Path | None,
        typer.Option("--test", metavar="SET", help="Real studies to test on.", show_default="--real's split --split"),
    ],
    out: Out,
    task: Annotated[TaskChoice, typer.Option("--task", help="What is learnt.")] = TaskChoice.classification,
    suite: Annotated[
        str,
        typer.Option("--suite", help="augmentation, anonymisation, imbalance, scarcity, pretraining or few-shot."),
    ] = "augmentation",
    settings: Annotated[str, typer.Option("--settings", help="small, xgem, chexgen or chexgenbench.")] = "small",
    runs: Annotated[int | None, typer.Option("--runs", help="Trainings a protocol.", show_default="5")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="Start from a file, or imagenet.", show_default="at random")
    ] = None,
    split: Split = "val",
    view: View = "frontal",
    labels: Labels = LabelSource.auto,
    pad: Pad = False,
    seed: Seed = 0,
    bootstrap: Draws = 1000,
    cache: Cache = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """What generated studies are worth as training data: networks trained with and without them, tested on real."""
    from xgem.eval.families import utility as family
    from xgem.eval.utility.data import studies_of
    from xgem.eval.utility.settings import preset

    changed: dict[str, Any] = {"seed": seed, "draws": bootstrap, "weights": weights}
    asked = preset(task.value, settings)
    asked = replace(asked, **changed, runs=asked.runs if runs is None else runs)

    def work() -> FamilyResult:
        learnt = _read(real, "train", view, labels, pad, "real")
        made = _read(generated, None, view, labels, pad, "synthetic")
        held = _read(test or real, split, view, labels, pad, "test")
        manifests = [path for path in (real, generated, test) if path is not None and _manifest(path)]
        return family.evaluate(
            learnt,
            made,
            held,
            asked,
            suite=suite,
            studies=studies_of(manifests) if manifests else None,
            cache=cache or out / "cache",
            device=device or "cpu",
        )

    _run("utility", out, overwrite, as_json, work)


@app.command()
def fairness(
    real: Annotated[
        Path, typer.Option("--real", metavar="SET", help="Real training studies (a manifest's split train).")
    ],
    generated: Generated,
    out: Out,
    test: Annotated[
        Path | None,
        typer.Option("--test", metavar="SET", help="Real studies to test on.", show_default="--real's split --split"),
    ] = None,
    axes: Annotated[str, typer.Option("--axes", help="Whose subgroups are topped up: sex, race, age.")] = "sex,age",
    share: Annotated[float, typer.Option("--share", help="Topped up to this share of the largest subgroup.")] = 1.0,
    settings: Annotated[str, typer.Option("--settings", help="small, xgem, chexgen or chexgenbench.")] = "small",
    runs: Annotated[int | None, typer.Option("--runs", help="Trainings of each kind.", show_default="5")] = None,
    split: Split = "val",
    view: View = "frontal",
    labels: Labels = LabelSource.auto,
    pad: Pad = False,
    seed: Seed = 0,
    bootstrap: Draws = 1000,
    cache: Cache = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Gaps between subgroups, of a classifier trained on real studies and of one with subgroups topped up."""
    from xgem.eval.suite import fairness as evaluate
    from xgem.eval.utility.settings import preset

    asked = replace(preset("classification", settings), seed=seed, draws=bootstrap)
    if runs is not None:
        asked = replace(asked, runs=runs)

    def work() -> FamilyResult:
        return evaluate(
            _read(real, "train", view, labels, pad, "real"),
            _read(generated, None, view, labels, pad, "synthetic"),
            _read(test or real, split, view, labels, pad, "test"),
            asked,
            axes=_names(axes),
            share=share,
            cache=cache or out / "cache",
            device=device or "cpu",
        )

    _run("fairness", out, overwrite, as_json, work)


def _names(text: str) -> Sequence[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


@app.command(name="all")
def everything(
    data: Annotated[Path, typer.Option("--data", metavar="MANIFEST", help="Manifest: .parquet or .jsonl.")],
    out: Out,
    model: Annotated[
        str | None, typer.Option("--model", help="Embedded checkpoint, folder or hub id.", show_default="openi-128")
    ] = None,
    split: Split = "val",
    extractor: Extractors = None,
    reid: Annotated[Path | None, typer.Option("--reid", metavar="PATH", help="Re-identification network.")] = None,
    xrv: Xrv = None,
    limit: Annotated[int | None, typer.Option("--limit", help="At most so many studies of the split.")] = None,
    training_limit: Annotated[
        int, typer.Option("--training-limit", help="Generations from training prompts, for privacy and utility.")
    ] = 1000,
    runs: Annotated[int, typer.Option("--runs", help="Trainings a protocol of utility.")] = 3,
    seed: Seed = 0,
    bootstrap: Draws = 1000,
    cache: Cache = None,
    device: Device = None,
    overwrite: Overwrite = False,
    progress: Progress = True,
    as_json: AsJson = False,
) -> None:
    """Generate what the measures need with a checkpoint, and measure all families against a manifest's real studies.

    OUT receives all.json, .csv, .md and a report in one file, all.html, which shows real pictures. Stopped, the same
    command goes on with what it has.
    """
    from xgem.eval.record import as_json as json_of
    from xgem.eval.record import as_markdown, check_results_folder, write_results
    from xgem.eval.suite import SuiteSettings, evaluate_all

    check_results_folder(out, "all", overwrite=overwrite)
    settings = SuiteSettings(
        seed=seed, bootstrap=bootstrap, limit=limit, training_limit=training_limit, utility_runs=runs
    )
    about, results = evaluate_all(
        model,
        data,
        out,
        split=split,
        settings=settings,
        extractors=extractor,
        reid=reid,
        xrv=xrv,
        cache=cache or out / "cache",
        device=device,
        progress=progress,
    )
    write_results(results, out, "all", about=about, overwrite=overwrite)
    typer.echo(json_of(results, about) if as_json else as_markdown(results))


@app.command()
def rank(
    records: Annotated[
        list[str], typer.Argument(metavar="NAME=FILE...", help="Records of several models: mine=runs/mine/all.json")
    ],
    family: Annotated[
        list[str] | None, typer.Option("--family", help="Only these; may be repeated.", show_default="all")
    ] = None,
) -> None:
    """Rank several models by every number that their records have in common."""
    from xgem.eval.comparisons import rank_records, read_record

    named = [one.partition("=") for one in records]
    if any(not separator or not name for name, separator, _ in named):
        raise InputError(f"{' '.join(records)}: expected NAME=FILE for each model")
    found = {name: read_record(path) for name, _, path in named}
    typer.echo(rank_records(found, families=family).as_markdown())
