"""``xgem data``: create and check manifests."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from xgem.cli import data_parts
from xgem.cli.counts import AsJson, Overwrite, show_counts
from xgem.cli.curate import curate
from xgem.cli.grouped import grouped
from xgem.cli.options import Reading
from xgem.configs.reading import AS_STATED
from xgem.data.sources import Source

if TYPE_CHECKING:
    from xgem.configs.reading import ReadOptions
    from xgem.data.manifest import Manifest

app = typer.Typer(help="Create and check manifests of studies.", no_args_is_help=True, add_completion=False)


@dataclass(frozen=True)
class OwnDicom:
    """Options of a folder of DICOM files."""

    reports: Annotated[
        Path | None, typer.Option("--reports", help="dicom: folder of text files, or a table.", show_default=False)
    ] = None
    salt: Annotated[str, typer.Option("--salt", help="dicom: secret that goes into the hashes of ids.")] = ""
    guess_views: Annotated[
        bool,
        typer.Option("--guess-views/--no-guess-views", help="dicom: tell views from pixels where headers do not."),
    ] = False

    def given(self, reading: ReadOptions) -> dict[str, Any]:
        """What was given, as the source takes it."""
        values: dict[str, Any] = {"reports": self.reports, "salt": self.salt}
        if self.guess_views:
            from xgem.judges.views import ViewGuess

            values["guess"] = ViewGuess.shipped(reading)
        return {name: value for name, value in values.items() if value}


@dataclass(frozen=True)
class OpeniExtra:
    """Options of Open-i."""

    extra: Annotated[
        Path | None,
        typer.Option(
            "--extra", metavar="DIR", help="openi: folder with ages and true shapes of the images.", show_default=False
        ),
    ] = None
    r2gen_split: Annotated[
        bool, typer.Option("--r2gen-split", help="openi: R2Gen's split, from the folder of --extra.")
    ] = False

    def given(self) -> dict[str, Any]:
        """What was given, as the source takes it."""
        return {name: value for name, value in vars(self).items() if value}


@dataclass(frozen=True)
class WithNih:
    """Options of boxes on images of NIH ChestX-ray14."""

    nih: Annotated[
        Path | None,
        typer.Option("--nih", metavar="DIR", help="nih-boxes: folder of nih, to join.", show_default=False),
    ] = None


@dataclass(frozen=True)
class FewShots:
    """Options of MedFMC's lists for few-shot learning."""

    shots: Annotated[
        int | None,
        typer.Option("--shots", help="medfmc-chestdr: patients a disease in train and val.", show_default="all"),
    ] = None
    drawing: Annotated[
        int | None, typer.Option("--drawing", help="medfmc-chestdr: which list of --shots.", show_default="1")
    ] = None

    def given(self) -> dict[str, Any]:
        """What was given, as the source takes it."""
        return {name: value for name, value in vars(self).items() if value is not None}


@app.command()
@grouped
def prepare(
    source: Annotated[Source, typer.Argument(help="Name of the data set; csv, dicom for your own.")],
    directory: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="Folder of the unpacked data set; csv: .csv, .tsv, .xlsx, .parquet."),
    ],
    out: Annotated[Path, typer.Option("--out", help="Manifest to write: .parquet or .jsonl.")],
    how: Reading,
    folder: OwnDicom,
    headers: OpeniExtra,
    joined: WithNih,
    few: FewShots,
    column: Annotated[
        list[str] | None,
        typer.Option("--column", metavar="FIELD=COLUMN", help="csv: the column of a field; the others are guessed."),
    ] = None,
    value: Annotated[
        list[str] | None,
        typer.Option("--value", metavar="FIELD:CELL=MEANING", help="csv: what a cell stands for: view:P=frontal."),
    ] = None,
    constant: Annotated[
        list[str] | None,
        typer.Option("--constant", metavar="FIELD=VALUE", help="csv: a field's value for all rows: view=frontal."),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", help="csv: folder of the images.", show_default="that of the table"),
    ] = None,
    val: Annotated[
        float | None, typer.Option("--val", help="csv: share of the subjects in split val.", show_default="0.1")
    ] = None,
    test: Annotated[
        float | None, typer.Option("--test", help="csv: share of the subjects in split test.", show_default="0.1")
    ] = None,
    labels_from_reports: Annotated[
        bool, typer.Option("--labels-from-reports", help="csv: label reports by xgem's rules.")
    ] = False,
    mapping: Annotated[
        Path | None, typer.Option("--mapping", metavar="FILE", help="csv: YAML file with all of these; options win.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="csv: show the guess and the counts, print the mapping; write nothing.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Create the manifest of a data set. It refers to the images in place; none is copied.

    For csv and dicom, what cannot be used is listed with its reason in OUT.left-out.csv.
    """
    from xgem.types import InputError, OutputError

    # Asked before the work, not after it.
    if out.exists() and not overwrite and not dry_run:
        raise OutputError(f"{out}: exists already; choose another name or pass --overwrite")
    told = {
        "columns": _pairs(column, "--column"),
        "values": _values(value),
        "constants": _pairs(constant, "--constant"),
        "images": images,
        "val": val,
        "test": test,
        "labels_from_reports": labels_from_reports or None,
    }
    told = {name: given for name, given in told.items() if given}
    if source is Source.csv:
        prepare_table(directory, out, told, mapping, how, dry_run=dry_run, as_json=as_json)
        return
    if told or mapping or dry_run:
        raise InputError(f"{next(iter(told), 'mapping')}: an option of csv, a table of your own; leave it out")
    given = _options_of(source, folder, headers, joined, few, how)
    manifest = source.module.prepare(directory, out, **given)
    if how.reading != AS_STATED:  # kept in the manifest, for all that read it
        manifest = manifest.read_as(how.reading)
        manifest.write(out)
    show_counts(manifest.summary() | {"manifest": str(out)}, as_json)


def _options_of(
    source: Source, dicom: OwnDicom, headers: OpeniExtra, joined: WithNih, few: FewShots, how: Reading
) -> dict[str, Any]:
    """The options of one source alone, as its ``prepare`` takes them; InputError where they are another's."""
    from xgem.types import InputError

    given = {Source.dicom: dicom.given(how.reading), Source.openi: headers.given()}
    given |= {Source.nih_boxes: {"nih": joined.nih} if joined.nih else {}, Source.medfmc_chestdr: few.given()}
    for owner, options in given.items():
        if options and source is not owner:
            of = "dicom, a folder of your own" if owner is Source.dicom else owner.value
            raise InputError(f"{next(iter(options))}: an option of {of}; leave it out")
    return given.get(source, {}) | ({"allow_any": bool(how.allow_any)} if source is Source.dicom else {})


@app.command()
@grouped
def check(
    manifest: Annotated[Path, typer.Argument(help="Manifest to check: .parquet or .jsonl.")],
    how: Reading,
    files: Annotated[bool, typer.Option(help="Check that every image file exists.")] = True,
    images: Annotated[bool, typer.Option("--images", help="Also decode every image and mask; takes minutes.")] = False,
    as_json: AsJson = False,
) -> None:
    """Check a manifest for schema errors, duplicates, missing files and subjects in two splits.

    Count rows by split, view, sex, age and label.
    """
    from xgem.data.manifest import Manifest
    from xgem.data.select import counts
    from xgem.labels.vocabulary import annotated_matrix, count_labels

    read = Manifest.read(manifest).read_as(how.reading)
    read.check(files=files)
    decoded = _read_all(read) if images else {}
    studies = read.studies()
    labels = count_labels(annotated_matrix(studies))
    show_counts(read.summary(studies) | counts(studies) | decoded, as_json, labels)


@app.command()
def merge(
    manifests: Annotated[list[Path], typer.Argument(metavar="MANIFEST...", help="Manifests of different data sets.")],
    out: Annotated[Path, typer.Option("--out", help="Manifest to write: .parquet or .jsonl.")],
    keep_first: Annotated[
        bool, typer.Option("--keep-first", help="Take a study that is in several from the first of them.")
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Merge manifests. A study or an image that is in two of them is an error."""
    from xgem.data.manifest import Manifest
    from xgem.data.manifest import merge as merge_manifests

    read = [Manifest.read(path) for path in manifests]
    merged = merge_manifests(read, out.resolve().parent, keep_first=keep_first)
    merged.check()
    merged.write(out, overwrite=overwrite)
    show_counts(merged.summary() | {"manifest": str(out)}, as_json)


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
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Segment lungs, heart and mediastinum in training images without masks, by a segmenter trained on drawn masks.

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
    show_counts(outlined.summary() | {"manifest": str(out)}, as_json)


def prepare_table(
    path: Path, out: Path, told: Mapping[str, Any], file: Path | None, how: Reading, *, dry_run: bool, as_json: bool
) -> None:
    """``xgem data prepare csv``."""
    from xgem.data.own_table import TableMapping, manifest_of
    from xgem.utils.files import replacing
    from xgem.utils.tables import csv_text

    kept = {} if file is None else TableMapping.read(file).model_dump(exclude_defaults=True)
    merged = {
        name: {**kept.get(name, {}), **given} if isinstance(given, Mapping) else given for name, given in told.items()
    }
    made = manifest_of(path, TableMapping.parse({**kept, **merged}, "xgem data prepare csv"), out.resolve().parent)
    reasons = Counter(one.reason for one in made.left_out)
    summary = made.manifest.summary() | ({"left out": dict(reasons)} if reasons else {})
    if dry_run:
        typer.echo(f"# {path}, {made.table.how}, {len(made.table.rows)} rows; keep this and pass it by --mapping")
        typer.echo(made.mapping.written(), nl=False)
        show_counts(summary, as_json)
        return
    listed = out.with_name(f"{out.stem}.left-out.csv")
    if made.left_out:
        with replacing(listed) as partial:
            partial.write_text(
                csv_text(["line", "reason", "cell"], [tuple(vars(one).values()) for one in made.left_out])
            )
    made.manifest.read_as(how.reading).write(out)
    show_counts(summary | {"manifest": str(out)} | ({"listed in": str(listed)} if reasons else {}), as_json)


def _pairs(given: list[str] | None, option: str) -> dict[str, str]:
    from xgem.types import InputError

    pairs: dict[str, str] = {}
    for text in given or ():
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"{option} {text}: expected {'FIELD=COLUMN' if option == '--column' else 'FIELD=VALUE'}")
        pairs[name] = value
    return pairs


def _values(given: list[str] | None) -> dict[str, dict[str, str]]:
    from xgem.types import InputError

    values: dict[str, dict[str, str]] = {}
    for text in given or ():
        (field, colon, rest), (_, equals, meaning) = text.partition(":"), text.rpartition("=")
        if not colon or not equals:
            raise InputError(f"--value {text}: expected FIELD:CELL=MEANING, as in view:P=frontal")
        values.setdefault(field, {})[rest.rpartition("=")[0]] = meaning
    return values


def _read_all(manifest: Manifest) -> dict[str, int]:
    """Decode all images and masks; returns how many images are doubtful, by reason, where any is.

    Raises:
        ManifestError: files cannot be used; the message counts them and gives the first one's reason.
    """
    from xgem.data.annotation_files import read_masks
    from xgem.data.pixels import SMALL_PART
    from xgem.data.transforms import read_with
    from xgem.types import InputError, ManifestError
    from xgem.utils.progress import track

    files = 0
    failed: list[str] = []
    found = {"small range": 0, "other notes": 0}
    for row in track(manifest.rows, "reading images"):
        path, size = manifest.file(row), None
        try:
            if path is not None:
                files += 1
                image = read_with(path, reading=row.reading)
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


for name, command in {**data_parts.COMMANDS, "curate": curate}.items():
    app.command(name)(command)
