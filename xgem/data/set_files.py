"""Reading a set of real or generated studies.

Three forms are accepted: an xgem manifest; a folder of images, with or without a CSV that describes them;
CheXGenBench's own CSVs (``prompt_INFO.csv``, ``generations_with_metadata.csv``, annotations with ``chexpert_labels`` as
a Python dict).
"""

from __future__ import annotations

import ast
import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal

from xgem.data.manifest import Manifest
from xgem.data.sets import EvalSet, Item
from xgem.data.study import Study
from xgem.labels.rules import LABELLER, label_report
from xgem.labels.vocabulary import CHEXPERT_CLASSES, annotated_labels
from xgem.types import DataError

IMAGE_ENDINGS: Final = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".npy", ".jp2"})


COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "file": ("file", "synthetic_filename", "img_savename", "filename", "path", "image"),
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
"""Accepted names of a CSV's columns, the first one found is used; the 14 CheXpert classes may be columns too."""


_ALLOWED_LABELS: Final = (-1.0, 0.0, 1.0)


def read_set(
    path: str | Path,
    *,
    split: str | None = None,
    view: str = "frontal",
    labels: Literal["auto", "file", "reports"] = "auto",
    sections: Sequence[str] = ("impression",),
    pad: bool = False,
    name: str | None = None,
) -> EvalSet:
    """Read a set from a manifest, a folder, or a CSV.

    Args:
        path: a ``.parquet`` or ``.jsonl`` manifest; a folder of images with at most one CSV; a CSV with paths of files
            relative to its own folder. :data:`COLUMNS` lists the names that columns may have.
        split, view, sections: only for a manifest: its studies, the view of which the first image is used, and the
            sections that make up the report.
        labels: ``file`` uses those in the file (in a manifest, its annotators' terms translated to CheXpert's classes:
            :func:`xgem.labels.vocabulary.annotated_labels`), ``reports`` labels the reports by xgem's own rules,
            ``auto`` does so if the file has no labels.
        pad: allow images of several sizes.

    Raises:
        DataError: no such path, nothing in it, a required column or a file is missing, a label other than -1, 0, 1 or
            empty.
        ManifestError: the manifest is not valid.
    """
    # The items, by the form of the path
    place = Path(path)
    if place.suffix in {".parquet", ".jsonl"}:
        items, labelled_by = _of_manifest(place, split, view, sections), "annotators"
    elif place.is_dir():
        tables = sorted(place.glob("*.csv"))
        if len(tables) > 1:
            names = ", ".join(table.name for table in tables)
            raise DataError(f"{place}: several CSVs ({names}); expected at most one: give the path of the CSV itself")
        items, labelled_by = _of_csv(tables[0]) if tables else _of_folder(place), "file"
    elif place.suffix == ".csv" and place.is_file():
        items, labelled_by = _of_csv(place), "file"
    else:
        raise DataError(f"{place}: expected a manifest (.parquet, .jsonl), a folder of images or a CSV")
    if not items:
        raise DataError(f"{place}: nothing in it{f' for split {split!r}' if split else ''}; expected images or reports")
    missing = [item.file for item in items if item.file is not None and not item.file.is_file()]
    if missing:
        raise DataError(f"{place}: {len(missing)} of {len(items)} files are missing, first {missing[0]}")
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


def _of_manifest(path: Path, split: str | None, view: str, sections: Sequence[str]) -> list[Item]:
    items = (_of_study(study, view, sections) for study in Manifest.read(path).studies(split))
    return [item for item in items if item.file is not None or item.report]


def _of_study(study: Study, view: str, sections: Sequence[str]) -> Item:
    report = " ".join(text for section in sections if (text := str(getattr(study, section)).strip()))
    files = study.images.get(view, ())
    return Item(
        id=study.id,
        file=files[0] if files else None,
        prompt=report,
        report=report,
        labels=annotated_labels(study.labels, study.source),
        subject=study.subject,
        age=study.age,
        sex=study.sex,
        race=study.race,
        severity=study.severity,
    )


def _of_folder(folder: Path) -> list[Item]:
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in IMAGE_ENDINGS and file.is_file())
    return [Item(file.relative_to(folder).with_suffix("").as_posix(), file) for file in files]


def _of_csv(path: Path) -> list[Item]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns, rows = list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV in UTF-8 ({error})") from None
    named = {field: next((name for name in names if name in columns), None) for field, names in COLUMNS.items()}
    if named["file"] is None and named["report"] is None:
        accepted = ", ".join((*COLUMNS["file"], *COLUMNS["report"]))
        raise DataError(f"{path}: columns {', '.join(columns) or '(none)'}; expected one of {accepted}")
    classes = [name for name in CHEXPERT_CLASSES if name in columns]
    return [_of_row(row, number, path, named, classes) for number, row in enumerate(rows, start=2)]


def _of_row(
    row: Mapping[str, str | None], number: int, path: Path, named: Mapping[str, str | None], classes: Sequence[str]
) -> Item:
    """The item of one row; ``named`` gives the column of each field, ``classes`` the columns that are classes."""

    def get(field_name: str) -> str:
        column = named[field_name]
        return (row.get(column) or "").strip() if column else ""

    def number_of(field_name: str) -> float | None:
        text = get(field_name)
        try:
            return float(text) if text else None
        except ValueError:
            raise DataError(f"{path}: line {number}: {field_name} is {text!r}, expected a number or empty") from None

    labels = _labels_of(get("labels"), f"{path}: line {number}") if named["labels"] else {}
    labels |= {
        name: _label(text, f"{path}: line {number}: {name}")
        for name in classes
        if (text := (row.get(name) or "").strip())
    }
    file = get("file")
    if named["file"] is not None and not file:
        raise DataError(f"{path}: line {number}: no file name in column {named['file']}")
    return Item(
        id=get("id") or (Path(file).with_suffix("").as_posix() if file else str(number - 2)),
        file=path.parent / file if file else None,
        pair=get("pair"),
        prompt=get("prompt"),
        report=get("report"),
        labels=labels,
        subject=get("subject"),
        age=number_of("age"),
        sex={"female": "F", "male": "M"}.get(get("sex").lower(), get("sex").upper() or None),
        race=get("race") or None,
        severity=number_of("severity"),
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
