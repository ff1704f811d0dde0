"""Where the labels of reports come from: xgem's own rules, CheXbert, or a CSV written by another labeller.

Each source keeps its own name, so that a result never carries the name of another labeller.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from xgem.labels.rules import LABELLER, LABELLER_VERSION, label_report
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.bootstrap import Array
from xgem.types import DataError


class ReportLabeller(Protocol):
    """``name`` and ``version`` (a number or the weights' hash) are reported with every result of the labeller."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def label(self, reports: Sequence[str]) -> Array:
        """n reports to (n, 14) of 1, 0, -1 (uncertain), NaN (not mentioned), columns as ``CHEXPERT_CLASSES``."""
        ...


@dataclass(frozen=True)
class RuleLabeller:
    """xgem's own rules (:mod:`xgem.labels.rules`); never to be called "CheXpert-labeler"."""

    name: str = LABELLER
    version: str = str(LABELLER_VERSION)

    def label(self, reports: Sequence[str]) -> Array:
        """As :class:`ReportLabeller`; an empty report mentions nothing."""
        by_text = {text: label_report(text) for text in set(reports)}
        rows = [[_number(by_text[text][name]) for name in CHEXPERT_CLASSES] for text in reports]
        return np.array(rows, dtype=np.float64).reshape(len(rows), len(CHEXPERT_CLASSES))


@dataclass(frozen=True)
class LabelTable:
    """Labels of reports by id, as written to a CSV by another labeller.

    ``name`` is the file's name, ``sha256`` the hash of its bytes.
    """

    name: str
    sha256: str
    rows: dict[str, tuple[float, ...]]

    def of(self, ids: Sequence[str]) -> Array:
        """(n, 14) of 1, 0, -1, NaN for these ids.

        Raises:
            DataError: an id is not in the file.
        """
        missing = [name for name in ids if name not in self.rows]
        if missing:
            raise DataError(f"{self.name}: no row for {len(missing)} of {len(ids)} reports, first {missing[0]!r}")
        return np.array([self.rows[name] for name in ids], dtype=np.float64).reshape(len(ids), len(CHEXPERT_CLASSES))


def read_label_table(path: str | Path) -> LabelTable:
    """Read a CSV with a column ``id`` (or ``study``, ``study_id``) and CheXpert's 14 classes, one row per report.

    A cell is 1, 0, -1 (uncertain) or empty (not mentioned), as written by CheXpert-labeler and CheXbert.

    Raises:
        DataError: no such file, a missing column, a duplicate id, or a label with another value.
    """
    place = Path(path)
    try:
        content = place.read_bytes()
        reader = csv.DictReader(content.decode("utf-8-sig").splitlines())
        columns, rows = list(reader.fieldnames or []), list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{place}: not a readable CSV in UTF-8 ({error})") from None
    key = next((column for column in ("id", "study", "study_id") if column in columns), None)
    absent = [name for name in CHEXPERT_CLASSES if name not in columns]
    if key is None or absent:
        raise DataError(f"{place}: no column {'id' if key is None else absent[0]!r}; expected id and CheXpert's 14")
    labels: dict[str, tuple[float, ...]] = {}
    for number, row in enumerate(rows, start=2):
        name = (row[key] or "").strip()
        if not name or name in labels:
            fault = f"duplicate id {name!r}" if name else "no id"
            raise DataError(f"{place}: line {number}: {fault}; expected one row per report")
        labels[name] = tuple(_cell(row[label], f"{place}: line {number}: {label}") for label in CHEXPERT_CLASSES)
    return LabelTable(place.name, hashlib.sha256(content).hexdigest(), labels)


def _cell(text: str | None, where: str) -> float:
    if not (text or "").strip():
        return math.nan
    try:
        label = float(text or "")
    except ValueError:
        label = math.inf
    if not math.isnan(label) and label not in (1.0, 0.0, -1.0):
        raise DataError(f"{where} is {text!r}, expected 1, 0, -1 (uncertain) or empty")
    return label


def _number(label: int | None) -> float:
    return math.nan if label is None else float(label)
