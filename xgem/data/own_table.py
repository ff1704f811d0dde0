"""A manifest from a table of one's own: which column holds what, what its cells mean, and what cannot be used.

The columns are told (:class:`TableMapping`) or guessed by their names. One row is an image, or a study with a column of
files for each view.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from xgem.data.cleaning import clean_report
from xgem.data.image_files import ImageFiles
from xgem.data.manifest import Manifest, place, split_of
from xgem.data.rows import Row, one_line
from xgem.data.sections import split_sections
from xgem.data.tables import Table, is_missing, number_of, read_table, sex_of, split_of_name, years_of
from xgem.labels.rules import label_report
from xgem.labels.terms import stated_term
from xgem.labels.views import VIEWS, view_of
from xgem.labels.vocabulary import CHEXPERT_CLASSES, plain
from xgem.types import DataError, InputError

FIELDS: Final[dict[str, str]] = {
    "study": "study studyid studyuid studyinstanceuid uid accession accessionnumber exam examid",
    "subject": "subject subjectid patient patientid pid mrn",
    "file": "file filename filepath path image imagepath imagefile imageindex dicom",
    "view": "view viewposition projection position",
    "findings": "findings findingstext",
    "impression": "impression impressions conclusion",
    "report": "report reporttext text",
    "labels": "labels label findinglabels problems classes",
    "age": "age patientage ageyears",
    "sex": "sex gender patientsex patientgender",
    "race": "race ethnicity",
    "severity": "severity brixia brixiascore",
    "split": "split subset partition fold",
    "licence": "licence license",
}
"""Fields of a row, and the names of columns (in lower case, letters and digits alone) that are taken for them."""
_CLASSES: Final = {plain(name): name for name in CHEXPERT_CLASSES}
_VIEW_WORDS: Final = re.compile(r"[a-z]+")


class TableMapping(BaseModel):
    """How a table's columns and cells are read; kept as YAML beside the table.

    Attributes:
        columns: the column of each field of :data:`FIELDS`; ``file.frontal`` and ``file.lateral`` where a row is a
            study. What is left out is guessed by name; an empty name leaves the field out.
        values: by field, what a cell's text stands for: ``view: {P: frontal, S: lateral}``.
        constants: a field's value for every row: ``view: frontal``.
        classes: columns named by CheXpert's classes that hold 1, 0, -1 or nothing; None takes all that are there.
        labels_from_reports: where no column has labels, label the reports by xgem's rules.
        val, test: shares of the subjects, where no column has splits.
        images: the folder that file names start from; by default the table's.
        encoding, separator: of a text table, where they are not found out rightly.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    columns: dict[str, str] = {}
    values: dict[str, dict[str, str]] = {}
    constants: dict[str, str] = {}
    classes: tuple[str, ...] | None = None
    labels_from_reports: bool = False
    val: float = Field(default=0.1, ge=0, lt=1)
    test: float = Field(default=0.1, ge=0, lt=1)
    images: Path | None = None
    encoding: str | None = None
    separator: str | None = None

    @field_validator("columns", "values", "constants")
    @classmethod
    def _of_known_fields(cls, value: dict[str, Any]) -> dict[str, Any]:
        known = [*FIELDS, *(f"file.{view}" for view in VIEWS), "source"]
        unknown = next((name for name in value if name not in known), None)
        if unknown is not None:
            raise ValueError(f"unknown field {unknown!r}: expected one of {', '.join(known)}")
        return value

    @classmethod
    def read(cls, path: Path) -> TableMapping:
        """From a YAML file.

        Raises:
            InputError: unreadable, or a field that is unknown or not valid; names it.
        """
        try:
            return cls.parse(yaml.safe_load(path.read_text(encoding="utf-8")) or {}, str(path))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise InputError(f"{path}: cannot be read as YAML ({' '.join(str(error).split())[:200]})") from None

    @classmethod
    def parse(cls, values: Any, where: str) -> TableMapping:
        """From its values; InputError names ``where`` and the field that is wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise InputError(f"{where}: {one_line(error)}") from None

    def written(self) -> str:
        """As YAML, without what is at its default."""
        return yaml.safe_dump(self.model_dump(mode="json", exclude_defaults=True), sort_keys=False, allow_unicode=True)


@dataclass(frozen=True)
class LeftOut:
    """A row of the table, or a part of it, that is not used: its line, and why."""

    line: int
    reason: str
    what: str


@dataclass(frozen=True)
class OwnTable:
    """A table, how it is read, its manifest, and what of it is not used."""

    table: Table
    mapping: TableMapping
    manifest: Manifest
    left_out: tuple[LeftOut, ...]


def guessed(table: Table, told: TableMapping) -> TableMapping:
    """The mapping with columns guessed by name for the fields that it does not tell.

    Raises:
        InputError: a column that is told is not there.
    """
    for field, column in told.columns.items():
        if column and column not in table.header:
            raise InputError(f"{table.path}: no column {column!r} for {field}; it has {', '.join(table.header)}")
    taken = set(told.columns.values())
    columns = dict(told.columns)
    whole_studies = any(name.startswith("file.") for name in told.columns)
    for field, names in FIELDS.items():
        if field in columns or field in told.constants or (field == "file" and whole_studies):
            continue
        by_name = {re.sub(r"[^a-z0-9]", "", column.lower()): column for column in reversed(table.header)}
        found = next((by_name[name] for name in names.split() if name in by_name and by_name[name] not in taken), None)
        if found is not None:
            columns[field] = found
            taken.add(found)
    classes = told.classes
    if classes is None:
        classes = tuple(column for column in table.header if plain(column) in _CLASSES and column not in taken)
    return told.model_copy(update={"columns": {k: v for k, v in columns.items() if v}, "classes": classes})


def manifest_of(path: Path, told: TableMapping, root: Path) -> OwnTable:
    """The manifest, to be written in ``root``, of the table ``path``.

    A report is divided by its headings (:mod:`xgem.data.sections`). Class columns and lists give the labels: 1 is the
    class's name, 0 "no ...", -1 "possible ..."; what a row leaves blank is unknown.

    Raises:
        InputError: columns that are told are missing. DataError: no column of files or reports, no row can be used, or
            a table that :func:`xgem.data.tables.read_table` refuses. ManifestError: rows contradict each other.
    """
    table = read_table(path, encoding=told.encoding, separator=told.separator)
    mapping = guessed(table, told)
    files = [field for field in mapping.columns if field.partition(".")[0] == "file"]
    if not files and not {"report", "findings", "impression"} & mapping.columns.keys():
        raise DataError(
            f"{path}: no column of files or reports among {', '.join(table.header)}; name one: --column file=..., or "
            "--column report=..."
        )
    reader = _Reader(table, mapping, ImageFiles(mapping.images or path.parent), root, _source(table, mapping))
    left_out: list[LeftOut] = []
    rows = [
        row for line, record in zip(table.lines, table.rows, strict=True) for row in reader.rows(line, record, left_out)
    ]
    if not rows:
        first = f", line {left_out[0].line}: {left_out[0].reason} ({left_out[0].what})" if left_out else ""
        raise DataError(f"{path}: none of its {len(table.rows)} rows can be used{first}")
    manifest = Manifest(tuple(rows), root)
    manifest.check()
    return OwnTable(table, mapping, manifest, tuple(left_out))


def _source(table: Table, mapping: TableMapping) -> str:
    """Whose labels they are: ``chexpert``, which lists every finding, only where each row states all 14 classes."""
    if "source" in mapping.constants:
        return mapping.constants["source"]
    stated = mapping.classes or ()
    complete = {plain(name) for name in stated} == {plain(name) for name in CHEXPERT_CLASSES}
    if complete and all(row[name] in ("0", "1", "0.0", "1.0") for row in table.rows for name in stated):
        return "chexpert"
    return table.path.stem


@dataclass(frozen=True)
class _Reader:
    table: Table
    mapping: TableMapping
    files: ImageFiles
    root: Path
    source: str

    def rows(self, line: int, record: Mapping[str, str], left_out: list[LeftOut]) -> Iterator[Row]:
        """The rows that one row of the table makes: an image, the images of a study, or a report without any."""

        def skip(reason: str, what: str = "") -> None:
            left_out.append(LeftOut(line, reason, what))

        where = f"{self.table.path}: line {line}"
        images = list(self._images(record, skip))
        names = [field for field in self.mapping.columns if field.partition(".")[0] == "file"]
        common = self._study(record, where, images, skip)
        if common is None or (names and not images and not common["findings"] and not common["impression"]):
            if common is not None:
                skip("neither an image nor a report")
            return
        for image in images or [{}]:
            try:
                yield Row.model_validate(common | image)
            except ValidationError as error:
                raise DataError(f"{where}: {one_line(error)}") from None

    def _images(self, record: Mapping[str, str], skip: Any) -> Iterator[dict[str, Any]]:
        for field, column in self.mapping.columns.items():
            kind, _, view = field.partition(".")
            name = record[column]
            if kind != "file" or not name:
                continue
            found = self.files.find(name)
            if found is None:
                skip("no such image", name)
                continue
            word = view or self._cell(record, "view")
            shown = view or _view(word)
            if shown is None:
                skip("view unknown: kept, but used by nothing", word)
            yield {"file": place(found, self.root), "view": shown}

    def _study(
        self, record: Mapping[str, str], where: str, images: Sequence[Mapping[str, Any]], skip: Any
    ) -> dict[str, Any] | None:
        """What the study's rows have in common; None where it cannot be used."""
        study = self._cell(record, "study") or (Path(images[0]["file"]).stem if images else "")
        if not study:
            skip("no study id and no image")
            return None
        subject = self._cell(record, "subject") or study
        split = self._cell(record, "split")
        if split and split_of_name(split) is None:
            skip("split unknown", split)
            return None
        age, sex, severity = (self._cell(record, name) for name in ("age", "sex", "severity"))
        if age and years_of(age) is None:
            skip("age left out: no years from 0 to 120", age)
        if sex and sex_of(sex) is None:
            skip("sex left out: neither F nor M", sex)
        report = split_sections(self._cell(record, "report"))
        findings = clean_report(self._cell(record, "findings")) or report.findings
        impression = clean_report(self._cell(record, "impression")) or report.impression
        return {
            "study": study,
            "subject": subject,
            "split": split_of_name(split) or split_of(subject, val=self.mapping.val, test=self.mapping.test),
            "findings": findings,
            "impression": impression,
            "labels": self._labels(record, where, f"{findings} {impression}"),
            "age": years_of(age),
            "sex": sex_of(sex),
            "race": self._cell(record, "race") or None,
            "severity": number_of(severity, f"{where}: severity") if severity else None,
            "source": self.source,
            "licence": self._cell(record, "licence"),
        }

    def _labels(self, record: Mapping[str, str], where: str, report: str) -> tuple[str, ...]:
        """Terms of the list column, and of the class columns that hold something; else by the rules, if wanted."""
        cell = self._cell(record, "labels")
        separator = next((mark for mark in "|;," if mark in cell), "|")
        listed = [name.strip() for name in cell.split(separator) if name.strip()]
        for name in self.mapping.classes or ():
            value = number_of(record[name], f"{where}: {name}") if record[name] else None
            try:
                term = None if value is None else stated_term(_CLASSES[plain(name)], value)
            except ValueError as error:
                raise DataError(f"{where}: {name} {error}") from None
            if term is not None and (value == 1 or self.source != "chexpert"):
                listed.append(term)
        if not listed and self.mapping.labels_from_reports and report.strip():
            listed = [name for name, label in label_report(report).items() if label == 1]
        return tuple(dict.fromkeys(listed))

    def _cell(self, record: Mapping[str, str], field: str) -> str:
        column = self.mapping.columns.get(field)
        text = record[column] if column else self.mapping.constants.get(field, "")
        meant = self.mapping.values.get(field, {}).get(text, text)
        return "" if is_missing(meant) else meant


def _view(word: str) -> str | None:
    """A view by its name, or by a word of the cell that DICOM's ViewPosition has ("AP Supine")."""
    if word.lower() in VIEWS:
        return word.lower()
    found = {view_of(part.upper()) or (part if part in VIEWS else None) for part in _VIEW_WORDS.findall(word.lower())}
    found.discard(None)
    return found.pop() if len(found) == 1 else None
