"""Shared by the sources: published CSV tables and their cells, images below a folder, and the manifest's rows."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from pydantic import ValidationError

from xgem.data.manifest import Manifest, split_of
from xgem.data.rows import Row, one_line
from xgem.types import DataError

IMAGE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".tif", ".tiff"})


def read_table(path: Path, *columns: str) -> list[dict[str, str]]:
    """Rows of a CSV table with a header; absent cells are empty.

    Raises:
        DataError: the table cannot be read, or one of ``columns`` is missing.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            missing = [column for column in columns if column not in (reader.fieldnames or ())]
            if missing:
                raise DataError(f"{path}: column {missing[0]!r} is missing; expected {', '.join(columns)}")
            return [{key: value or "" for key, value in row.items() if key is not None} for row in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not readable as a CSV table ({error})") from error


def image_files(source: Path) -> dict[str, Path]:
    """Every image file below ``source`` by its name, selected by extension; the content is checked on reading."""
    return {path.name: path for path in sorted(source.rglob("*")) if path.suffix.lower() in IMAGE_ENDINGS}


def image_size(path: Path) -> tuple[int, int]:
    """Width and height of a PNG or JPEG from its header.

    Raises:
        DataError: the file is not a readable image.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from error


def number_of(text: str, where: str) -> float:
    """A cell as a number; ``where`` names it in the message.

    Raises:
        DataError: it is not a number.
    """
    try:
        return float(text)
    except ValueError as error:
        raise DataError(f"{where} is {text!r}; expected a number") from error


def years_of(text: str) -> float | None:
    """Age in years: "61", and NIH's "061Y", "011M", "006D"; None for an impossible age."""
    text = text.strip().upper()
    unit = {"Y": 1.0, "M": 1 / 12, "D": 1 / 365.25}.get(text[-1:], 1.0)
    try:
        years = float(text.rstrip("YMD")) * unit
    except ValueError:
        return None
    return years if 0 <= years <= 120 else None


def sex_of(text: str) -> str | None:
    """ "F" or "M"; None for anything else."""
    sex = text.strip().upper()
    return sex if sex in ("F", "M") else None


def make_row(where: str, **fields: Any) -> Row:
    """A manifest row of published values; ``where`` names it in the message.

    Raises:
        DataError: a value is invalid.
    """
    try:
        return Row.model_validate(fields)
    except ValidationError as error:
        raise DataError(f"{where}: {one_line(error)}") from error


def make_case(where: str, source: str, stem: str, subject: str, **fields: Any) -> Row:
    """A row as :func:`make_row` of a frontal that is a study of its own; a hash of the subject gives 20 % to val."""
    fields |= {"study": f"{source}-{stem}", "subject": subject, "split": split_of(subject, val=0.2, test=0)}
    return make_row(where, view="frontal", source=source, **fields)


def write_manifest(rows: Iterable[Row], root: Path, out: Path) -> Manifest:
    """The manifest of the rows, checked and written to ``out``.

    Raises:
        ManifestError: the rows contradict each other. OutputError: ``out`` cannot be written.
    """
    manifest = Manifest(tuple(rows), root)
    manifest.check()
    manifest.write(out)
    return manifest
