"""Options and steps that the commands of ``xgem eval FAMILY`` share."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from xgem.data.sets import EvalSet
    from xgem.eval.record import FamilyResult


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


Seed = Annotated[int, typer.Option("--seed", min=0, help="0 or more.")]
Draws = Annotated[int, typer.Option("--bootstrap", min=1, help="Bootstrap draws.")]
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
Pad = Annotated[bool, typer.Option("--pad", help="Take images of mixed sizes: pad each to a square and resize.")]
Extractors = Annotated[
    list[str] | None,
    typer.Option(
        "--extractor", metavar="NAME[=PATH]", help="A feature space; may be repeated.", show_default="published and own"
    ),
]
Xrv = Annotated[
    Path | None, typer.Option("--xrv", metavar="FILE", help="TorchXRayVision's DenseNet weights, as another judge.")
]
Reid = Annotated[
    Path | None,
    typer.Option("--reid", metavar="PATH", help="Re-identification network: trained here or published."),
]
Chexbert = Annotated[Path | None, typer.Option("--chexbert", metavar="FILE", help="CheXbert's weights.")]
Vocabulary = Annotated[
    Path | None, typer.Option("--chexbert-vocab", metavar="FILE", help="BERT's vocabulary (vocab.txt).")
]
Radgraph = Annotated[Path | None, typer.Option("--radgraph-python", metavar="FILE", help="A Python that has radgraph.")]
Ratescore = Annotated[
    Path | None, typer.Option("--ratescore-python", metavar="FILE", help="A Python that has RaTEScore.")
]
Judging = Annotated[
    str | None,
    typer.Option("--model", help="Checkpoint whose prompt encoders give the cosine.", show_default="openi-128"),
]


def is_manifest(path: Path) -> bool:
    """Whether the path is one of a manifest, which has splits and views."""
    return path.suffix in {".parquet", ".jsonl"}


def read(path: Path, split: str | None, view: str, labels: str, pad: bool, name: str) -> EvalSet:
    """A set; ``split`` is of manifests alone."""
    from xgem.data.set_files import read_set

    wanted: Any = labels
    return read_set(path, split=split if is_manifest(path) else None, view=view, labels=wanted, pad=pad, name=name)


def read_sets(
    real: Path, generated: Path, training: Path | None, split: str, view: str, labels: str, pad: bool
) -> tuple[EvalSet, EvalSet, EvalSet | None]:
    """The real, the generated and, where there are any, the training studies; overlaps are refused."""
    from xgem.data.sets import check_disjoint

    found = read(real, split, view, labels, pad, "real")
    made = read(generated, None, view, labels, pad, "generated")
    check_disjoint(found, made)
    source = training or (real if is_manifest(real) and split != "train" else None)
    if source is None:
        return found, made, None
    learnt = read(source, "train", view, labels, pad, "training")
    check_disjoint(found, learnt)
    return found, made, learnt


def run(
    family: str, out: Path, overwrite: bool, as_json: bool, work: Callable[[], FamilyResult | list[FamilyResult]]
) -> None:
    """Do the work, write its results into ``out``, and print them."""
    from xgem.eval.report import as_json as json_of
    from xgem.eval.report import as_markdown, check_results_folder, write_results

    check_results_folder(out, family, overwrite=overwrite)  # asked before the work, not after it
    made = work()
    results = made if isinstance(made, list) else [made]
    write_results(results, out, family, overwrite=overwrite)
    typer.echo(json_of(results) if as_json else as_markdown(results))


def place_of(device: str | None) -> str:
    """The device asked for, or a GPU where there is one."""
    from xgem.utils.devices import resolve_device

    return str(resolve_device(device))
