"""What the sources share: rows of published values, and the manifest that they make."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from xgem.data.manifest import Manifest, split_of
from xgem.data.rows import Row, one_line
from xgem.data.tables import number_of
from xgem.labels.terms import stated_term
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.types import DataError

logger = logging.getLogger(__name__)


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


def table_of(source: Path, pattern: str) -> Path | None:
    """The table of a data set's folder whose name has this pattern, packed (``.gz``) or not; None if there is none."""
    return next(iter(sorted((*source.glob(pattern), *source.glob(f"{pattern}.gz")))), None)


def tables_of(source: Path, **patterns: str) -> dict[str, Path]:
    """:func:`table_of` by name, all of which must be there.

    Raises:
        DataError: the folder or one of them is missing.
    """
    found = {name: path for name, pattern in patterns.items() if (path := table_of(source, pattern)) is not None}
    if len(found) < len(patterns):
        wanted = ", ".join(f"{pattern}[.gz]" for pattern in patterns.values())
        lacking = next(pattern for name, pattern in patterns.items() if name not in found)
        raise DataError(f"{source}: has no {lacking}[.gz]; expected the unpacked data set, with {wanted} in it")
    return found


def check_images(source: str, table: Path, listed: int, found: int) -> None:
    """Warn of listed images that are not there: archives are often unpacked in part.

    Raises:
        DataError: none is there.
    """
    if not found:
        raise DataError(f"{table}: none of its {listed} images is in {table.parent}; unpack them there")
    if found < listed:
        logger.warning("%s: %d of %d listed images are not there and are left out", source, listed - found, listed)


def stated_labels(record: Mapping[str, str], where: str) -> tuple[str, ...]:
    """Labels of a record with CheXpert's classes as columns of 1, 0, -1 and blanks; a blank says nothing.

    Raises:
        DataError: another value.
    """
    terms: list[str | None] = []
    for name in CHEXPERT_CLASSES:
        if text := record.get(name, ""):
            value = number_of(text, f"{where}: {name}")
            try:
                terms.append(stated_term(name, value))
            except ValueError as error:
                raise DataError(f"{where}: {name} {error}") from None
    return tuple(term for term in terms if term is not None)


def flagged(record: Mapping[str, str], names: Iterable[str], where: str) -> tuple[str, ...]:
    """The ``names`` of those columns of a record that are 1, not 0.

    Raises:
        DataError: another value.
    """
    values = {name: record[name] for name in names}
    for name, text in values.items():
        if text not in ("0", "1", "0.0", "1.0"):
            raise DataError(f"{where}: {name} is {text!r}; expected 0 or 1")
    return tuple(name for name, text in values.items() if float(text))


def write_manifest(rows: Iterable[Row], root: Path, out: Path) -> Manifest:
    """The manifest of the rows, checked and written to ``out``.

    Raises:
        ManifestError: the rows contradict each other. OutputError: ``out`` cannot be written.
    """
    manifest = Manifest(tuple(rows), root)
    manifest.check()
    manifest.write(out)
    return manifest
