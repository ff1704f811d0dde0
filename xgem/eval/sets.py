"""A set of real or generated radiographs and reports, read from any of the forms in which people keep them.

Three forms: an xgem manifest; a folder of pictures, with a CSV that describes them or without one; CheXGenBench's own
CSVs (``prompt_INFO.csv``, ``generations_with_metadata.csv``, annotations with ``chexpert_labels`` as a Python dict).
"""

from __future__ import annotations

import ast
import csv
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from xgem.data.cache import content_hash
from xgem.data.manifest import Manifest
from xgem.data.read import read_picture
from xgem.data.transforms import pad_square, resize
from xgem.labels.rules import LABELLER, label_report
from xgem.labels.vocabulary import CHEXPERT_CLASSES, annotated_labels
from xgem.types import DataError, InputError, Study

Images = NDArray[np.uint8]
PICTURE_ENDINGS: Final = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".dcm", ".npy", ".jp2"})
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
"""What a CSV's columns may be called, the first found is taken; the 14 CheXpert classes may be columns too."""
_ALLOWED_LABELS: Final = (-1.0, 0.0, 1.0)


@dataclass(frozen=True)
class Item:
    """One picture, or one report without a picture.

    ``id`` names it within its set, ``pair`` the item of the other set that it answers to (a generation names the real
    study whose prompt made it; by default ``id``). ``prompt`` is the text that a generation was asked with, ``report``
    the report itself. ``labels`` maps CheXpert classes to 1, 0 or -1 (uncertain); a class that nothing is known of is
    absent. ``age`` in years.
    """

    id: str
    file: Path | None = None
    pair: str = ""
    prompt: str = ""
    report: str = ""
    labels: Mapping[str, float] = field(default_factory=dict[str, float])
    subject: str = ""
    age: float | None = None
    sex: str | None = None
    race: str | None = None
    severity: float | None = None


@dataclass(frozen=True)
class EvalSet:
    """Items of one kind, in a fixed order.

    ``labelled_by`` says where the labels come from: ``file``, ``annotators`` or the labeller's name. ``pad`` allows
    pictures of several sizes: each is padded to a square, then resized.
    """

    name: str
    items: tuple[Item, ...]
    labelled_by: str = "file"
    pad: bool = False

    def __len__(self) -> int:
        return len(self.items)

    @cached_property
    def sha256(self) -> str:
        """Of everything in the set: pictures' contents, reports, prompts, labels."""
        digest = hashlib.sha256()
        files = [item.file for item in self.items if item.file is not None]
        digest.update(content_hash(files).encode() if files else b"")
        for item in self.items:
            stated = replace(item, file=None, labels={})
            digest.update(repr((stated, sorted(item.labels.items()))).encode())
        return digest.hexdigest()

    @property
    def described(self) -> dict[str, Any]:
        """Name, size and hash, as records have them."""
        return {"name": self.name, "n": len(self), "sha256": self.sha256}

    @property
    def reports(self) -> list[str]:
        return [item.report for item in self.items]

    @property
    def prompts(self) -> list[str]:
        return [item.prompt for item in self.items]

    def labels(self, classes: Sequence[str] = CHEXPERT_CLASSES) -> NDArray[np.float64]:
        """(n, classes) of 1, 0, -1 (uncertain) and NaN (not mentioned)."""
        rows = [[item.labels.get(name, math.nan) for name in classes] for item in self.items]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(classes))

    def subset(self, rows: Sequence[int] | NDArray[Any], name: str | None = None) -> EvalSet:
        """The items of these rows, in that order."""
        return replace(self, name=name or self.name, items=tuple(self.items[int(row)] for row in rows))

    def with_pictures(self) -> EvalSet:
        """The items that have a picture.

        Raises:
            InputError: none has.
        """
        rows = [row for row, item in enumerate(self.items) if item.file is not None]
        if not rows:
            raise InputError(f"{self.name}: no pictures in it; this measure needs some")
        return self if len(rows) == len(self.items) else self.subset(rows)

    def with_reports(self) -> EvalSet:
        """The items that have a report.

        Raises:
            InputError: none has.
        """
        rows = [row for row, item in enumerate(self.items) if item.report.strip()]
        if not rows:
            raise InputError(f"{self.name}: no reports in it; this measure needs some")
        return self if len(rows) == len(self.items) else self.subset(rows)

    def batches(self, size: int | None = None, batch_size: int = 256) -> Iterator[Images]:
        """The pictures in order, as (b, size, size) uint8; never more than ``batch_size`` in memory.

        Args:
            size: side in pixels; None keeps the pictures' own size, which must then be the same for all.

        Raises:
            ImageError: a picture is missing or unreadable; names the file. It is never replaced by a black one.
            DataError: pictures of several sizes (unless ``pad``); names two of them.
        """
        first: tuple[str, tuple[int, int]] | None = None
        files = [item.file for item in self.with_pictures().items if item.file is not None]
        with ThreadPoolExecutor(4) as pool:
            for start in range(0, len(files), batch_size):
                pixels: list[NDArray[np.float32]] = []
                for picture in pool.map(read_picture, files[start : start + batch_size]):
                    shape = (int(picture.pixels.shape[0]), int(picture.pixels.shape[1]))
                    first = first or (picture.origin, shape)
                    if shape != first[1] and not self.pad:
                        raise DataError(
                            f"{self.name}: pictures of mixed sizes, {first[0]} {_by(first[1])} and {picture.origin} "
                            f"{_by(shape)}; make them equal, or pass pad=True (--pad) to pad and resize each"
                        )
                    pixels.append(_square(picture.pixels, size))
                yield np.stack([np.rint(one * 255).astype(np.uint8) for one in pixels])

    def pictures(self, size: int | None = None) -> Images:
        """All pictures at once, (n, size, size) uint8; see :meth:`batches`."""
        return np.concatenate(list(self.batches(size)))


def _square(pixels: NDArray[np.float32], size: int | None) -> NDArray[np.float32]:
    squared = pad_square(pixels) if size is not None and pixels.shape[0] != pixels.shape[1] else pixels
    return squared if size is None else resize(squared, (size, size), "area")


def squares(pictures: Images, size: int) -> Images:
    """(n, h, w) uint8 -> (n, size, size): each padded to a square, then resized by area."""
    if pictures.shape[1:] == (size, size):
        return pictures
    made = [_square(one.astype(np.float32) / 255, size) for one in pictures]
    return np.stack([np.rint(one * 255).astype(np.uint8) for one in made])


def _by(shape: tuple[int, int]) -> str:
    return f"{shape[1]} x {shape[0]}"


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
        path: a ``.parquet`` or ``.jsonl`` manifest; a folder of pictures with at most one CSV; a CSV whose files lie
            beside it or in folders that it names. :data:`COLUMNS` lists the names that columns may have.
        split, view, sections: of a manifest: which studies, the first picture of which view, what makes the report.
        labels: ``file`` takes those that stand in the file (of a manifest, what its annotators' terms say of CheXpert's
            classes: :func:`xgem.labels.vocabulary.annotated_labels`), ``reports`` labels the reports by xgem's own
            rules, ``auto`` does so where the file has none.
        pad: allow pictures of several sizes.

    Raises:
        DataError: no such path, nothing in it, a needed column or a file is missing, a label outside {-1, 0, 1, empty}.
        ManifestError: the manifest is not valid.
    """
    place = Path(path)
    if place.suffix in {".parquet", ".jsonl"}:
        found, where = _of_manifest(place, split, view, sections), "annotators"
    elif place.is_dir():
        tables = sorted(place.glob("*.csv"))
        if len(tables) > 1:
            names = ", ".join(table.name for table in tables)
            raise DataError(f"{place}: several CSVs ({names}); expected at most one, so give the CSV itself")
        found, where = _of_csv(tables[0]) if tables else _of_folder(place), "file"
    elif place.suffix == ".csv" and place.is_file():
        found, where = _of_csv(place), "file"
    else:
        raise DataError(f"{place}: expected a manifest (.parquet, .jsonl), a folder of pictures or a CSV")
    if not found:
        raise DataError(
            f"{place}: nothing in it{f' for split {split!r}' if split else ''}; expected pictures or reports"
        )
    missing = [item.file for item in found if item.file is not None and not item.file.is_file()]
    if missing:
        raise DataError(f"{place}: {len(missing)} of {len(found)} files are missing, first {missing[0]}")
    wanted = labels == "reports" or (labels == "auto" and not any(item.labels for item in found))
    if wanted and any(item.report.strip() or item.prompt.strip() for item in found):
        found = [replace(item, labels=_from_text(item.report or item.prompt)) for item in found]
        where = LABELLER
    _unique(found, place)
    return EvalSet(name or place.stem, tuple(found), where, pad)


def pairs(real: EvalSet, generated: EvalSet) -> tuple[EvalSet, EvalSet]:
    """Both sets row by row: every generation beside the real item that it names.

    Raises:
        DataError: no generation names a real item.
    """
    rows = {item.id: row for row, item in enumerate(real.items)}
    matched = [
        (rows[item.pair or item.id], row) for row, item in enumerate(generated.items) if (item.pair or item.id) in rows
    ]
    if not matched:
        raise DataError(
            f"{generated.name}: none of its {len(generated)} items names one of the {len(real)} of {real.name}; "
            "a column `pair` (or equal ids) tells which real study each generation answers to"
        )
    return real.subset([r for r, _ in matched]), generated.subset([g for _, g in matched])


def check_disjoint(real: EvalSet, generated: EvalSet) -> None:
    """Refuse sets that share a picture, byte for byte.

    Raises:
        DataError: names a file of each.
    """

    def hashed(items: EvalSet) -> dict[str, Path]:
        files = [item.file for item in items.items if item.file is not None]
        return {content_hash([file]): file for file in files}

    known = hashed(real)
    for digest, file in hashed(generated).items():
        if digest in known:
            raise DataError(f"{real.name} and {generated.name} overlap: {file} is {known[digest]}; take copies out")


def _unique(items: Sequence[Item], place: Path) -> None:
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(
                f"{place}: id {item.id!r} stands there twice; ids must be unique (several of one study: `pair`)"
            )
        seen.add(item.id)


def _from_text(text: str) -> dict[str, float]:
    return (
        {name: float(label) for name, label in label_report(text).items() if label is not None} if text.strip() else {}
    )


def _of_manifest(path: Path, split: str | None, view: str, sections: Sequence[str]) -> list[Item]:
    found = (_of_study(study, view, sections) for study in Manifest.read(path).studies(split))
    return [item for item in found if item.file is not None or item.report]


def _of_study(study: Study, view: str, sections: Sequence[str]) -> Item:
    report = " ".join(text for section in sections if (text := str(getattr(study, section)).strip()))
    files = study.pictures.get(view, ())
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
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in PICTURE_ENDINGS and file.is_file())
    return [Item(file.relative_to(folder).with_suffix("").as_posix(), file) for file in files]


def _of_csv(path: Path) -> list[Item]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            columns, rows = list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not a readable CSV in UTF-8 ({error})") from None
    named = {field: next((one for one in names if one in columns), None) for field, names in COLUMNS.items()}
    if named["file"] is None and named["report"] is None:
        wanted = ", ".join((*COLUMNS["file"], *COLUMNS["report"]))
        raise DataError(f"{path}: columns {', '.join(columns) or '(none)'}; expected one of {wanted}")
    classes = [name for name in CHEXPERT_CLASSES if name in columns]
    return [_of_row(row, number, path, named, classes) for number, row in enumerate(rows, start=2)]


def _of_row(
    row: Mapping[str, str | None], number: int, path: Path, named: Mapping[str, str | None], classes: Sequence[str]
) -> Item:
    def get(field_name: str) -> str:
        column = named[field_name]
        return (row.get(column) or "").strip() if column else ""

    def number_of(field_name: str) -> float | None:
        text = get(field_name)
        try:
            return float(text) if text else None
        except ValueError:
            raise DataError(f"{path}: line {number}: {field_name} is {text!r}, expected a number or nothing") from None

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
    """CheXGenBench keeps labels as a Python dict in text; nan is a class not mentioned."""
    if not text:
        return {}
    try:
        stated = ast.literal_eval(text.replace("nan", "None"))
    except (ValueError, SyntaxError):
        raise DataError(f"{where}: labels are {text!r:.60}, expected a dict such as {{'Edema': 1.0}}") from None
    if not isinstance(stated, dict):
        raise DataError(f"{where}: labels are {type(stated).__name__}, expected a dict such as {{'Edema': 1.0}}")
    unknown = [name for name in stated if name not in CHEXPERT_CLASSES]
    if unknown:
        raise DataError(f"{where}: unknown class {unknown[0]!r}; expected CheXpert's: {', '.join(CHEXPERT_CLASSES)}")
    return {name: _label(value, f"{where}: {name}") for name, value in stated.items() if value is not None}


def _label(value: Any, where: str) -> float:
    try:
        label = float(value)
    except (TypeError, ValueError):
        label = math.inf
    if label not in _ALLOWED_LABELS:
        raise DataError(f"{where} is {value!r}, expected 1, 0, -1 (uncertain) or nothing")
    return label
