"""``xgem data``: create and check manifests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from xgem.data.manifest import Manifest

app = typer.Typer(help="Create and check manifests of studies.", no_args_is_help=True, add_completion=False)


class Source(StrEnum):
    """Public data sets that xgem can read."""

    openi = "openi"
    nih = "nih"
    segmentations = "segmentations"
    cardiothoracic = "cardiothoracic"
    severity = "severity"


@app.command()
def prepare(
    source: Annotated[Source, typer.Argument(help="Name of the data set.")],
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the unpacked data set.")],
    out: Annotated[Path, typer.Option("--out", help="Manifest to write: .parquet or .jsonl.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing manifest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Create the manifest of a data set. It refers to the images in place; none is copied."""
    import importlib

    from xgem.types import OutputError

    # Asked before the work, not after it.
    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; choose another name or pass --overwrite")
    manifest = importlib.import_module(f"xgem.data.sources.{source.value}").prepare(directory, out)
    _show(manifest.summary() | {"manifest": str(out)}, as_json)


@app.command()
def check(
    manifest: Annotated[Path, typer.Argument(help="Manifest to check: .parquet or .jsonl.")],
    files: Annotated[bool, typer.Option(help="Check that every image file exists.")] = True,
    images: Annotated[bool, typer.Option("--images", help="Also decode every image and mask; takes minutes.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Check a manifest for schema errors, duplicates, missing files and subjects in two splits; count labels."""
    from xgem.data.manifest import Manifest
    from xgem.labels.vocabulary import annotated_matrix, count_labels

    read = Manifest.read(manifest)
    read.check(files=files)
    decoded = _read_all(read) if images else {}
    labels = count_labels(annotated_matrix(read.studies()))
    _show(read.summary() | decoded, as_json, labels)


@app.command()
def merge(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="Manifests of different data sets.")],
    out: Annotated[Path, typer.Option("--out", help="Manifest to write: .parquet or .jsonl.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing manifest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Merge manifests. A study or an image that is in two of them is an error."""
    from xgem.data.manifest import Manifest
    from xgem.data.manifest import merge as merge_manifests

    merged = merge_manifests([Manifest.read(path) for path in manifests], out.resolve().parent)
    merged.check()
    merged.write(out, overwrite=overwrite)
    _show(merged.summary() | {"manifest": str(out)}, as_json)


@app.command()
def outline(
    manifest: Annotated[Path, typer.Argument(help="Manifest with hand-drawn masks in its split train.")],
    out: Annotated[Path, typer.Option("--out", help="Manifest to write; masks are saved in a folder next to it.")],
    cache: Annotated[
        Path | None,
        typer.Option(
            "--cache", metavar="DIR", help="Folder for prepared images and the segmenter.", show_default="next to OUT"
        ),
    ] = None,
    epochs: Annotated[int, typer.Option("--epochs", min=1, help="Training epochs of the segmenter.")] = 40,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Random seed of the segmenter.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing manifest.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as JSON.")] = False,
) -> None:
    """Segment lungs and heart in training images without masks, by a segmenter trained on those with masks.

    This gives a ControlNet more training data, as hand-drawn masks are rare. Splits val and test are not changed.
    """
    import logging

    from xgem.data.manifest import Manifest
    from xgem.judges.segmenter import SegmenterConfig
    from xgem.train.outlines import outline as outline_images
    from xgem.types import OutputError

    if out.exists() and not overwrite:
        raise OutputError(f"{out}: exists already; choose another name or pass --overwrite")
    logging.getLogger("xgem").setLevel(logging.INFO)
    outlined = outline_images(
        Manifest.read(manifest),
        out.with_suffix(".masks"),
        cache or out.with_suffix(".cache"),
        config=SegmenterConfig(epochs=epochs, seed=seed),
    )
    outlined.write(out, overwrite=overwrite)
    _show(outlined.summary() | {"manifest": str(out)}, as_json)


def _read_all(manifest: Manifest) -> dict[str, int]:
    """Decode all images and masks; returns how many images are doubtful, by reason, where any is.

    Raises:
        ManifestError: files cannot be used; the message counts them and gives the first one's reason.
    """
    from rich.console import Console
    from rich.progress import track

    from xgem.data.annotation_files import read_masks
    from xgem.data.pixels import SMALL_PART
    from xgem.data.read import read_image
    from xgem.types import InputError, ManifestError

    files = 0
    failed: list[str] = []
    found = {"small range": 0, "other notes": 0}
    for row in track(manifest.rows, description="reading images", console=Console(stderr=True), transient=True):
        path, size = manifest.file(row), None
        try:
            if path is not None:
                files += 1
                image = read_image(path)
                size = image.pixels.shape
                small = image.used < SMALL_PART
                found["small range"] += small
                found["other notes"] += len(image.notes) > small
        except InputError as error:
            failed.append(str(error))
        for structure, masks in manifest.masks(row).items():
            for mask in masks:
                files += 1
                try:
                    outlined = read_masks({structure: mask}, (structure,)).size
                    if size is not None and outlined != size:
                        raise InputError(f"{mask}: a mask of {outlined} pixels for an image of {size} (height, width)")
                except InputError as error:
                    failed.append(str(error))
    if failed:
        raise ManifestError(f"{len(failed)} of {files} files cannot be used, first {failed[0]}")
    return {name: count for name, count in found.items() if count}


def _show(
    counts: Mapping[str, object], as_json: bool, labels: Mapping[str, tuple[int, int, int]] | None = None
) -> None:
    """Counts, a line each; ``labels``: of each class the studies that have it, do not have it, and are unknown."""
    if as_json:
        columns = ("present", "absent", "unknown")
        by_class = {name: dict(zip(columns, count, strict=True)) for name, count in (labels or {}).items()}
        typer.echo(json.dumps(dict(counts) | ({} if labels is None else {"labels": by_class})))
        return
    for name, value in counts.items():
        text = ", ".join(f"{key} {count}" for key, count in value.items()) if isinstance(value, dict) else value
        typer.echo(f"{name:12} {text}")
    if labels and any(present for present, _, _ in labels.values()):
        typer.echo(f"{'class':28} {'present':>8} {'absent':>8} {'unknown':>8}")
        for name, (present, absent, unknown) in labels.items():
            typer.echo(f"{name:28} {present:8d} {absent:8d} {unknown:8d}")
