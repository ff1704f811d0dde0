"""Options of the commands that measure sets of studies, and the steps that these commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xgem.cli.options import AsJson, Cache, Device, Draws, Out, Overwrite, Progress, Reading, Seed

if TYPE_CHECKING:
    from xgem.data.sets import EvalSet
    from xgem.eval.instruments import Weights
    from xgem.eval.record import FamilyResult
    from xgem.judges.settings import UtilitySettings


class LabelSource(StrEnum):
    """Where labels come from: the file, xgem's rules over the reports, or the file where it has any."""

    auto = "auto"
    file = "file"
    reports = "reports"


Real = Annotated[Path, typer.Option("--real", metavar="SET", help="Real studies: a manifest, a folder or a CSV.")]
Training = Annotated[
    Path | None,
    typer.Option("--training", metavar="SET", help="Real training studies.", show_default="--real's split train"),
]
Extractors = Annotated[
    list[str] | None,
    typer.Option(
        "--extractor",
        metavar="NAME[=PATH]",
        help="Feature space; may be repeated.",
        show_default="the published ones and xgem's own",
    ),
]
Xrv = Annotated[
    Path | None, typer.Option("--xrv", metavar="FILE", help="TorchXRayVision's DenseNet weights, as another judge.")
]
Reid = Annotated[
    Path | None,
    typer.Option(
        "--reid", metavar="PATH", help="Re-identification network: xgem (it ships), trained by xgem, or published."
    ),
]

Labeller = Annotated[
    str | None,
    typer.Option("--labeller", metavar="chat:...", help="Labeller of reports: chat:FILE.yaml or chat:URL#MODEL."),
]


_GENERATED = ("generated", "synthetic", "independent")


@dataclass(frozen=True, kw_only=True)
class Sets(Reading):
    """The sets of a command: how they are read, and where the results go; ``Reading`` is of the real ones."""

    generated: Annotated[
        Path, typer.Option("--generated", metavar="SET", help="Generated studies: a cohort, a folder or a CSV.")
    ]
    out: Out
    split: Annotated[
        str, typer.Option("--split", metavar="NAME", help="Split of the real studies when they are a manifest.")
    ] = "val"
    view: Annotated[str, typer.Option("--view", metavar="NAME", help="View to measure, where a set has several.")] = (
        "frontal"
    )
    labels: Annotated[
        LabelSource,
        typer.Option(
            "--labels", help="Label source: the file's labels, labels from the reports (xgem-rules), or auto."
        ),
    ] = LabelSource.auto
    pad: Annotated[
        bool, typer.Option("--pad", help="Accept images of mixed sizes: pad each to a square and resize.")
    ] = False
    seed: Seed = 0
    bootstrap: Draws = 1000
    cache: Cache = None
    device: Device = None
    overwrite: Overwrite = False
    progress: Progress = True
    as_json: AsJson = False

    @property
    def folder(self) -> Path:
        """Where features and judges are kept."""
        from xgem.utils.cache import evaluation_cache

        return self.cache or evaluation_cache()

    @property
    def place(self) -> str:
        """The device named by the user, or a GPU if there is one."""
        from xgem.utils.devices import resolve_device

        return str(resolve_device(self.device))

    @property
    def draws(self) -> dict[str, Any]:
        """Seed and draws of the bootstrap, as most families take them."""
        return {"draws": self.bootstrap, "seed": self.seed}

    def read(self, path: Path, name: str, split: str | None = None, **options: Any) -> EvalSet:
        """A set; ``split`` applies to manifests alone, and the options of reading to all but generated ones."""
        from xgem.data.set_files import read_set

        how: dict[str, Any] = {"view": self.view, "labels": str(self.labels), "pad": self.pad, **options}
        if name not in _GENERATED:
            how["reading"] = self.reading
        return read_set(path, split=split if is_manifest(path) else None, name=name, **how)

    def read_all(self, real: Path, training: Path | None, **options: Any) -> tuple[EvalSet, EvalSet, EvalSet | None]:
        """The real, the generated and, if there are any, the training studies.

        Raises:
            DataError: two of the sets overlap.
        """
        from xgem.data.sets import check_disjoint

        truth = self.read(real, "real", self.split, **options)
        generated = self.read(self.generated, "generated", **options)
        check_disjoint(truth, generated)
        source = training or (real if is_manifest(real) and self.split != "train" else None)
        if source is None:
            return truth, generated, None
        known = self.read(source, "training", "train", **options)
        check_disjoint(truth, known)
        return truth, generated, known

    def run(self, family: str, work: Callable[[], FamilyResult]) -> None:
        """Do the work, write its results, and print them."""
        write_and_print(family, self.out, self.overwrite, self.as_json, lambda: ({}, [work()]))


@dataclass(frozen=True)
class Downstream:
    """Networks of a downstream task: what they are trained and tested on, and how."""

    real: Annotated[
        Path, typer.Option("--real", metavar="SET", help="Real training studies (a manifest's split train).")
    ]
    test: Annotated[
        Path | None,
        typer.Option("--test", metavar="SET", help="Real studies to test on.", show_default="--real's split --split"),
    ] = None
    settings: Annotated[
        str,
        typer.Option("--settings", metavar="NAME", help="Training settings: small, xgem, chexgen or chexgenbench."),
    ] = "small"
    runs: Annotated[
        int | None, typer.Option("--runs", metavar="N", help="Training runs per protocol.", show_default="5")
    ] = None

    def read(self, sets: Sets) -> tuple[EvalSet, EvalSet, EvalSet]:
        """Real and synthetic training studies, and the real ones to test on."""
        return (
            sets.read(self.real, "real", "train"),
            sets.read(sets.generated, "synthetic"),
            sets.read(self.test or self.real, "test", sets.split),
        )

    def training(self, sets: Sets, task: str, **options: Any) -> UtilitySettings:
        """How the networks are trained."""
        from dataclasses import replace

        from xgem.judges.settings import preset

        settings = replace(preset(task, self.settings), **sets.draws, **options)
        return settings if self.runs is None else replace(settings, runs=self.runs)


@dataclass(frozen=True)
class TextWeights:
    """Networks and packages that measure reports."""

    chexbert: Annotated[Path | None, typer.Option("--chexbert", metavar="FILE", help="Weights of CheXbert.")] = None
    chexbert_vocabulary: Annotated[
        Path | None, typer.Option("--chexbert-vocab", metavar="FILE", help="Vocabulary of BERT (vocab.txt).")
    ] = None
    radgraph_python: Annotated[
        Path | None,
        typer.Option("--radgraph-python", metavar="FILE", help="Path to a Python interpreter with radgraph installed."),
    ] = None
    ratescore_python: Annotated[
        Path | None,
        typer.Option(
            "--ratescore-python", metavar="FILE", help="Path to a Python interpreter with RaTEScore installed."
        ),
    ] = None
    labeller: Labeller = None

    def weights(self, **others: Any) -> Weights:
        """These and others, as evaluations take them."""
        from xgem.eval.instruments import Weights

        return Weights(**vars(self), **others)


def is_manifest(path: Path) -> bool:
    """Whether the path is one of a manifest, which has splits and views."""
    return path.suffix in {".parquet", ".jsonl"}


def write_and_print(
    stem: str,
    out: Path,
    overwrite: bool,
    as_json: bool,
    work: Callable[[], tuple[dict[str, Any], list[FamilyResult]]],
) -> None:
    """Do the work, which gives settings and results, write these into ``out``, and print them."""
    from xgem.eval.report import as_json as json_of
    from xgem.eval.report import as_markdown, check_results_folder, write_results

    check_results_folder(out, stem, overwrite=overwrite)  # before the work, which may take hours
    settings, results = work()
    write_results(results, out, stem, settings=settings, overwrite=overwrite)
    typer.echo(json_of(results, settings) if as_json else as_markdown(results))
