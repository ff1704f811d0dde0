"""What the sources share: reading published CSV tables and finding pictures below a folder."""

from __future__ import annotations

import csv
from pathlib import Path

from xgem.types import DataError

PICTURE_ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".dcm", ".tif", ".tiff"})


def read_table(path: Path, *columns: str) -> list[dict[str, str]]:
    """Rows of a CSV table with a header; absent cells are empty.

    Raises:
        DataError: the table cannot be read, or lacks one of ``columns``.
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


def picture_files(source: Path) -> dict[str, Path]:
    """Every picture file below ``source`` by its name; the endings only select, reading decides by content."""
    return {path.name: path for path in sorted(source.rglob("*")) if path.suffix.lower() in PICTURE_ENDINGS}
