"""``xgem eval utility | fairness | all | rank``: what generated studies are worth, and all families at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xgem.cli.measure_options import (
    Chexbert,
    Draws,
    Extractors,
    Generated,
    Labels,
    LabelSource,
    Pad,
    Radgraph,
    Ratescore,
    Reid,
    Seed,
    Split,
    TaskChoice,
    View,
    Vocabulary,
    Xrv,
    is_manifest,
    place_of,
    read,
    run,
)
from xgem.cli.options import AsJson, Cache, Device, Out, Overwrite, Progress
from xgem.types import InputError

if TYPE_CHECKING:
    from xgem.eval.record import FamilyResult

app = typer.Typer()


@app.command()
def utility(
    real: Annotated[
        Path, typer.Option("--real", metavar="SET", help="Real training studies (a manifest's split train).")
    ],
    generated: Generated,
    out: Out,
    test: Annotated[
        Path | None,
        typer.Option("--test", metavar="SET", help="Real studies to test on.", show_default="--real's split --split"),
    ] = None,
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
    from xgem.judges.settings import preset
    from xgem.judges.tasks.data import studies_of

    changed: dict[str, Any] = {"seed": seed, "draws": bootstrap, "weights": weights}
    asked = preset(task.value, settings)
    asked = replace(asked, **changed, runs=asked.runs if runs is None else runs)

    def work() -> FamilyResult:
        learnt = read(real, "train", view, labels, pad, "real")
        made = read(generated, None, view, labels, pad, "synthetic")
        held = read(test or real, split, view, labels, pad, "test")
        manifests = [path for path in (real, generated, test) if path is not None and is_manifest(path)]
        return family.evaluate(
            learnt,
            made,
            held,
            asked,
            suite=suite,
            studies=studies_of(manifests) if manifests else None,
            cache=cache or out / "cache",
            device=place_of(device),
        )

    run("utility", out, overwrite, as_json, work)


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
    from xgem.judges.settings import preset

    asked = replace(preset("classification", settings), seed=seed, draws=bootstrap)
    if runs is not None:
        asked = replace(asked, runs=runs)

    def work() -> FamilyResult:
        return evaluate(
            read(real, "train", view, labels, pad, "real"),
            read(generated, None, view, labels, pad, "synthetic"),
            read(test or real, split, view, labels, pad, "test"),
            asked,
            axes=_names(axes),
            share=share,
            cache=cache or out / "cache",
            device=place_of(device),
        )

    run("fairness", out, overwrite, as_json, work)


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
    reid: Reid = None,
    xrv: Xrv = None,
    chexbert: Chexbert = None,
    chexbert_vocabulary: Vocabulary = None,
    radgraph_python: Radgraph = None,
    ratescore_python: Ratescore = None,
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

    OUT receives all.json, .csv, .md and a report in one file, all.html, which shows real images. Stopped, the same
    command goes on with what it has.
    """
    from xgem.eval.instruments import Weights
    from xgem.eval.report import as_json as json_of
    from xgem.eval.report import as_markdown, check_results_folder, write_results
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
        weights=Weights(extractor, reid, xrv, chexbert, chexbert_vocabulary, radgraph_python, ratescore_python),
        cache=cache or out / "cache",
        device=device,
        progress=progress,
    )
    write_results(results, out, "all", settings=about, overwrite=overwrite)
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
    from xgem.eval.compare import rank_records
    from xgem.eval.schema import read_record

    named = [one.partition("=") for one in records]
    if any(not separator or not name for name, separator, _ in named):
        raise InputError(f"{' '.join(records)}: expected NAME=FILE for each model")
    found = {name: read_record(path) for name, _, path in named}
    typer.echo(rank_records(found, families=family).as_markdown())
