"""Reading a set of real or generated studies.

Three forms are accepted: an xgem manifest; a folder of images, with or without a CSV that describes them;
CheXGenBench's own CSVs (``prompt_INFO.csv``, ``generations_with_metadata.csv``, annotations with ``chexpert_labels`` as
a Python dict).
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from PIL import Image

from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.image_files import IMAGE_ENDINGS, is_data
from xgem.data.manifest import Manifest
from xgem.data.sets import EvalSet, Item
from xgem.data.study import ANNOTATED_VIEW, Study, report_of
from xgem.data.tables import number_of, read_table, sex_of
from xgem.labels.rules import LABELLER, label_report
from xgem.labels.vocabulary import CHEXPERT_CLASSES, annotated_labels, plain
from xgem.labels.vocabulary import named as stated
from xgem.types import DataError

COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "file": ("file", "file_name", "synthetic_filename", "img_savename", "filename", "path", "image"),
    "view": ("view",),
    "id": ("id", "study"),
    "pair": ("pair", "source_id"),
    "prompt": ("prompt", "annotated_prompt"),
    "report": ("report", "impression"),
    "labels": ("chexpert_labels", "labels"),
    "subject": ("subject", "subject_id", "patient", "patient_id"),
    "age": ("age",),
    "sex": ("sex", "gender"),
    "race": ("race",),
    "severity": ("severity",),
}
"""Accepted names of a table's columns in any case, the first one found is used; the 14 CheXpert classes may be columns
too."""


_TABLES: Final = (".csv", ".tsv", ".txt", ".xlsx")
_UNKNOWN_SEX: Final = ("", "unknown", "unk", "u", "other", "o")
_MAX_AGE, _MAX_SEVERITY = 120.0, 18.0
_ALLOWED_LABELS: Final = (-1.0, 0.0, 1.0)


def read_set(
    path: str | Path,
    *,
    split: str | None = None,
    view: str | None = "frontal",
    labels: Literal["auto", "file", "reports"] = "auto",
    classes: Sequence[str] = CHEXPERT_CLASSES,
    sections: Sequence[str] = ("impression",),
    pad: bool = False,
    name: str | None = None,
    reading: ReadOptions = AS_STATED,
    images: Path | None = None,
) -> EvalSet:
    """Read a set from a manifest, a folder, or a CSV.

    Args:
        path: a ``.parquet`` or ``.jsonl`` manifest; a folder of images with at most one table; a table
            (:func:`xgem.data.tables.read_table`) with paths of files relative to its own folder. :data:`COLUMNS` lists
            the names that columns may have.
        split, sections: only for a manifest: its studies, and the sections that make up the report.
        view: the view of which images are taken: of a manifest's study the first one; of a table the rows that its
            column ``view`` gives it, or leaves open; of a folder the images that do not say that they are of another
            view, as those that xgem generated do. None takes all of a table or a folder.
        labels: ``file`` uses those in the file (in a manifest, its annotators' terms translated to CheXpert's classes:
            :func:`xgem.labels.vocabulary.annotated_labels`), ``reports`` labels the reports by xgem's own rules,
            ``auto`` does so if the file has no labels.
        classes: what items are labelled with: CheXpert's classes, or any list of a source's own: terms of a manifest's
            labels (:func:`xgem.labels.vocabulary.named`), columns of a table. Texts tell CheXpert's alone.
        pad: allow images of several sizes.
        reading: how the images are read; what it leaves open is as a manifest says.
        images: the folder that a table's file names start from; by default the table's own.

    Raises:
        DataError: no such path, nothing in it, a required column or a file is missing, a label other than -1, 0, 1 or
            empty.
        ManifestError: the manifest is not valid.
    """
    # The items, by the form of the path
    place = Path(path)
    if place.suffix in {".parquet", ".jsonl"}:
        items, labelled_by = _of_manifest(place, split, view or ANNOTATED_VIEW, sections, classes), "annotators"
    elif place.is_dir():
        tables = sorted(file for file in place.glob("*") if file.suffix.lower() == ".csv" and is_data(Path(file.name)))
        if len(tables) > 1:
            names = ", ".join(table.name for table in tables)
            raise DataError(f"{place}: several CSVs ({names}); expected at most one: give the path of the CSV itself")
        items = _of_table(tables[0], view, images, classes) if tables else _of_folder(place, view)
        labelled_by = "file"
    elif place.suffix.lower() in _TABLES and place.is_file():
        items, labelled_by = _of_table(place, view, images, classes), "file"
    else:
        raise DataError(
            f"{place}: expected a manifest (.parquet, .jsonl), a folder of images or a table ({', '.join(_TABLES)})"
        )
    if not items:
        raise DataError(f"{place}: nothing in it{f' for split {split!r}' if split else ''}; expected images or reports")
    missing = [item.file for item in items if item.file is not None and not item.file.is_file()]
    if missing:
        raise DataError(f"{place}: {len(missing)} of {len(items)} files are missing, first {missing[0]}")
    items = [replace(item, reading=reading.over(item.reading)) for item in items]
    # Labels from the text, if requested or if there are no others
    from_text = labels == "reports" or (labels == "auto" and not any(item.labels for item in items))
    if from_text and any(item.report.strip() or item.prompt.strip() for item in items):
        items = [replace(item, labels=_from_text(item.report or item.prompt)) for item in items]
        labelled_by = LABELLER
    _unique(items, place)
    return EvalSet(name or place.stem, tuple(items), labelled_by, pad)


def _unique(items: Sequence[Item], place: Path) -> None:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(
                f"{place}: duplicate id {item.id!r}; ids must be unique (use `pair` for several items of one study)"
            )
        seen.add(item.id)


def _from_text(text: str) -> dict[str, float]:
    return (
        {name: float(label) for name, label in label_report(text).items() if label is not None} if text.strip() else {}
    )


def _of_manifest(
    path: Path, split: str | None, view: str, sections: Sequence[str], classes: Sequence[str]
) -> list[Item]:
    items = (_of_study(study, view, sections, classes) for study in Manifest.read(path).studies(split))
    return [item for item in items if item.file is not None or item.report]


def _of_study(study: Study, view: str, sections: Sequence[str], classes: Sequence[str]) -> Item:
    report = report_of(study, sections)
    files = study.images.get(view, ())
    return Item(
        id=study.id,
        file=files[0] if files else None,
        prompt=report,
        report=report,
        labels=labels_of(study, classes),
        subject=study.subject,
        age=study.age,
        sex=study.sex,
        race=study.race,
        severity=study.severity,
        reading=study.reading_of(files[0]) if files else study.reading,
    )


def labels_of(study: Study, classes: Sequence[str] = CHEXPERT_CLASSES) -> dict[str, float]:
    """What a study's annotators say of ``classes``, CheXpert's or terms of their own; unknown ones are left out."""
    labels = annotated_labels(study.labels, study.source)
    names = [plain(name) for name in study.labels]
    labels |= {name: stated(plain(name), names, study.source) for name in classes if name not in CHEXPERT_CLASSES}
    return {name: labels[name] for name in classes if not math.isnan(labels.get(name, math.nan))}


def _of_folder(folder: Path, view: str | None) -> list[Item]:
    """Its images, but for hidden files, masks, and those that xgem generated as another output."""
    files = [
        file
        for file in sorted(folder.rglob("*"))
        if file.suffix.lower() in IMAGE_ENDINGS and file.is_file() and is_data(file.relative_to(folder))
    ]
    if view is not None:
        files = [file for file in files if not file.name.endswith(".mask.png") and _output(file) in (None, view)]
    return [Item(file.relative_to(folder).with_suffix("").as_posix(), file) for file in files]


def _output(file: Path) -> str | None:
    """The output that an image of xgem says it is; None for other images."""
    if file.suffix.lower() != ".png":
        return None
    try:
        with Image.open(file) as image:
            return json.loads(image.info["xgem"]).get("output")
    except (OSError, KeyError, ValueError, AttributeError):
        return None


def _of_table(path: Path, view: str | None, images: Path | None, labelled: Sequence[str]) -> list[Item]:
    table = read_table(path)
    by_name = {_plain(column): column for column in reversed(table.header)}
    named = {
        field: next((by_name[_plain(name)] for name in names if _plain(name) in by_name), None)
        for field, names in COLUMNS.items()
    }
    if named["file"] is None and named["report"] is None:
        accepted = ", ".join((*COLUMNS["file"], *COLUMNS["report"]))
        raise DataError(f"{path}: columns {', '.join(table.header)} (read as {table.how}); expected one of {accepted}")
    classes = {name: by_name[_plain(name)] for name in labelled if _plain(name) in by_name}
    views = [row[named["view"]] if named["view"] else "" for row in table.rows]
    kept = [k for k, shown in enumerate(views) if not shown or view in (None, shown.lower())]
    if table.rows and not kept:
        counts = ", ".join(f"{shown} {count}" for shown, count in Counter(views).items())
        raise DataError(f"{path}: no row of view {view}; it has {counts}: choose one of them (--view)")
    folder = path.parent if images is None else images
    return [_of_row(table.rows[k], table.lines[k], path, folder, named, classes) for k in kept]


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _of_row(
    row: Mapping[str, str],
    number: int,
    path: Path,
    images: Path,
    named: Mapping[str, str | None],
    classes: Mapping[str, str],
) -> Item:
    """The item of one row; ``named`` gives the column of each field, ``classes`` those of CheXpert's classes."""
    where = f"{path}: line {number}"

    def get(field: str) -> str:
        column = named[field]
        return row[column] if column else ""

    def number_within(field: str, highest: float) -> float | None:
        text = get(field)
        if not text:
            return None
        value = number_of(text, f"{where}: {field}")
        if not 0 <= value <= highest:
            raise DataError(f"{where}: {field} is {text!r}, expected a number from 0 to {highest:g} or empty")
        return value

    labels = _labels_of(get("labels"), where) if named["labels"] else {}
    labels |= {name: _label(row[column], f"{where}: {name}") for name, column in classes.items() if row[column]}
    file, sex = get("file"), get("sex")
    if named["file"] is not None and not file:
        raise DataError(f"{where}: no file name in column {named['file']}")
    if sex_of(sex) is None and sex.lower() not in _UNKNOWN_SEX:
        raise DataError(f"{where}: sex is {sex!r}, expected F, M or empty")
    return Item(
        id=get("id") or (Path(file).with_suffix("").as_posix() if file else str(number - 2)),
        file=images / file if file else None,
        pair=get("pair"),
        prompt=get("prompt"),
        report=get("report"),
        labels=labels,
        subject=get("subject"),
        age=number_within("age", _MAX_AGE),
        sex=sex_of(sex),
        race=get("race") or None,
        severity=number_within("severity", _MAX_SEVERITY),
    )


def _labels_of(text: str, where: str) -> dict[str, float]:
    """Labels from CheXGenBench's text of a Python dict, in which nan is a class that is not mentioned."""
    if not text:
        return {}
    try:
        parsed = ast.literal_eval(text.replace("nan", "None"))
    except (ValueError, SyntaxError):
        raise DataError(f"{where}: labels are {text!r:.60}, expected a dict such as {{'Edema': 1.0}}") from None
    if not isinstance(parsed, dict):
        raise DataError(f"{where}: labels are {type(parsed).__name__}, expected a dict such as {{'Edema': 1.0}}")
    unknown = [name for name in parsed if name not in CHEXPERT_CLASSES]
    if unknown:
        raise DataError(f"{where}: unknown class {unknown[0]!r}; expected CheXpert's: {', '.join(CHEXPERT_CLASSES)}")
    return {name: _label(value, f"{where}: {name}") for name, value in parsed.items() if value is not None}


def _label(value: Any, where: str) -> float:
    try:
        label = float(value)
    except (TypeError, ValueError):
        label = math.inf
    if label not in _ALLOWED_LABELS:
        raise DataError(f"{where} is {value!r}, expected 1, 0, -1 (uncertain) or empty")
    return label
