"""``xgem eval FAMILY``: measure sets of generated radiographs and reports against real ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xgem.cli import measures_of_use
from xgem.cli.measure_options import (
    Chexbert,
    Draws,
    Extractors,
    Generated,
    Judging,
    Labels,
    LabelSource,
    Pad,
    Radgraph,
    Ratescore,
    Real,
    Reid,
    Seed,
    Split,
    Training,
    View,
    Vocabulary,
    Xrv,
    is_manifest,
    place_of,
    read,
    read_sets,
    run,
)
from xgem.cli.options import AsJson, Cache, Device, Out, Overwrite
from xgem.types import InputError

if TYPE_CHECKING:
    from xgem.eval.record import FamilyResult

app = typer.Typer()


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
    per_finding: Annotated[bool, typer.Option(help="Also for the images of each finding.")] = True,
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
    from xgem.eval.instruments import extractor_names
    from xgem.eval.spaces import Settings

    def work() -> FamilyResult:
        found, made, learnt = read_sets(real, generated, training, split, view, labels, pad)
        return family.evaluate(
            found,
            made,
            extractors=extractor or extractor_names(view, learnt),
            training=learnt,
            cache=cache or out / "cache",
            per_finding=per_finding,
            settings=Settings(seed=seed, bootstrap=bootstrap),
            device=place_of(device),
            note=note,
        )

    run("fidelity", out, overwrite, as_json, work)


@app.command()
def text(
    real: Real,
    generated: Generated,
    out: Out,
    training: Training = None,
    split: Split = "val",
    chexbert: Chexbert = None,
    chexbert_vocabulary: Vocabulary = None,
    real_labels: Annotated[
        Path | None, typer.Option("--real-labels", metavar="CSV", help="Labels of the real reports, by id.")
    ] = None,
    generated_labels: Annotated[
        Path | None, typer.Option("--generated-labels", metavar="CSV", help="Labels of the generated reports, by id.")
    ] = None,
    radgraph_python: Radgraph = None,
    ratescore_python: Ratescore = None,
    seed: Seed = 0,
    bootstrap: Draws = 1000,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """BLEU, ROUGE-L, label F1 by every labeller that is there, RadGraph-F1, RaTEScore, and BLEU within a study."""
    from xgem.eval.combine import over_samples
    from xgem.eval.families import text as family
    from xgem.eval.instruments import Weights
    from xgem.judges.report_labellers import read_label_table

    if (real_labels is None) != (generated_labels is None):
        raise InputError("--real-labels and --generated-labels: expected both or neither")

    def work() -> FamilyResult:
        weights = Weights(
            chexbert=chexbert,
            chexbert_vocabulary=chexbert_vocabulary,
            radgraph_python=radgraph_python,
            ratescore_python=ratescore_python,
        )
        labellers = weights.labellers(place_of(device))
        if real_labels is not None and generated_labels is not None:
            tables = family.Tables(read_label_table(generated_labels), read_label_table(real_labels))
            labellers[generated_labels.stem] = tables
        found, made, learnt = read_sets(real, generated, training, split, "frontal", "auto", True)
        options: dict[str, Any] = {"labellers": labellers, "external": weights.external(), "training": learnt}
        return over_samples(family.evaluate, found, made, draws=bootstrap, seed=seed, **options)

    run("text", out, overwrite, as_json, work)


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
    """Whether generated images show their studies' findings: AUC, F1 and correlation by judges of real images."""
    from xgem.eval.combine import over_samples
    from xgem.eval.families import factual as family
    from xgem.eval.instruments import judges_of, xrv_of

    def work() -> FamilyResult:
        found, made, learnt = read_sets(real, generated, training, split, view, labels, pad)
        place = place_of(device)
        judges = judges_of(learnt, xrv_of(xrv, place), cache or out / "cache", place)
        return over_samples(family.evaluate, found, made, judges=judges, draws=bootstrap, seed=seed)

    run("factual", out, overwrite, as_json, work)


@app.command()
def consistency(
    real: Real,
    generated: Generated,
    out: Out,
    independent: Annotated[
        Path | None,
        typer.Option("--independent", metavar="SET", help="The same studies, image and report made apart."),
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
    """Whether the image and the report of one generation agree: cosine of prompt encoders, distance of label sets."""
    from xgem.eval.families import consistency as family
    from xgem.eval.instruments import judges_of, xrv_of
    from xgem.pipeline.embedding import PromptEncoders, open_model

    def work() -> FamilyResult:
        found, made, learnt = read_sets(real, generated, training, split, view, labels, pad)
        encoders, place = PromptEncoders.of(open_model(model, device=device), view), place_of(device)
        return family.evaluate(
            found.with_images().with_reports(),
            made,
            encoders=encoders,
            judges=judges_of(learnt, xrv_of(xrv, place), cache or out / "cache", place),
            independent=None if independent is None else read(independent, None, view, labels, pad, "independent"),
            draws=bootstrap,
            seed=seed,
        )

    run("consistency", out, overwrite, as_json, work)


@app.command()
def privacy(
    generated: Generated,
    training: Annotated[Path, typer.Option("--training", metavar="SET", help="All that the model was trained on.")],
    out: Out,
    held_out: Annotated[
        Path | None,
        typer.Option(
            "--held-out", metavar="SET", help="Real images of others.", show_default="--training's split --split"
        ),
    ] = None,
    extractor: Extractors = None,
    reid: Reid = None,
    own_prompt: Annotated[
        bool, typer.Option("--own-prompt", help="As the published code: only the image whose prompt was used.")
    ] = False,
    split: Annotated[str, typer.Option("--split", help="Of a manifest: which studies are the held-out ones.")] = "val",
    view: View = "frontal",
    pad: Pad = False,
    seed: Seed = 0,
    bootstrap: Draws = 1000,
    cache: Cache = None,
    device: Device = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Distance of generations to the closest training image, re-identification, and tests of memorisation."""
    from xgem.eval.families import privacy as family
    from xgem.eval.instruments import open_extractors
    from xgem.judges.reid import load_reid

    def work() -> FamilyResult:
        made = read(generated, None, view, "auto", pad, "generated")
        learnt = read(training, "train", view, "auto", pad, "training")
        source = held_out or (training if is_manifest(training) else None)
        spared = None if source is None else read(source, split, view, "auto", pad, "held-out")
        folder = cache or out / "cache"
        place = place_of(device)
        return family.evaluate(
            made,
            learnt,
            spared,
            extractors=open_extractors(extractor, view, learnt, folder, place),
            reid=None if reid is None else load_reid(reid, device=place),
            own_prompt=own_prompt,
            cache=folder,
            seed=seed,
            bootstrap=bootstrap,
            device=place,
        )

    run("privacy", out, overwrite, as_json, work)


app.registered_commands += measures_of_use.app.registered_commands
