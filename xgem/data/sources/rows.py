"""What the sources share: rows of published values, and the manifest that they make."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xgem.data.manifest import Manifest, split_of
from xgem.data.rows import Row, one_line
from xgem.types import DataError


def make_row(where: str, **fields: Any) -> Row:
    """A row of published values; ``where`` names it.

    Raises:
        DataError: a value cannot be.
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
