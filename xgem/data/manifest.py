"""The manifest: one row a picture, the only form in which xgem takes a data set.

A manifest is a ``.parquet`` or ``.jsonl`` file. It refers to pictures where they are and copies none. Every
subject belongs to one split; a subject in two is an error, because it would leak into the measures.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator, model_validator

from xgem.types import ManifestError, OutputError, Study

logger = logging.getLogger(__name__)

Split = Literal["train", "val", "test"]
View = Literal["frontal", "lateral"]
SPLITS: tuple[str, ...] = get_args(Split)
SCHEMA_VERSION = "1"
F = TypeVar("F")


class Row(BaseModel):
    """One picture of a study, or the report of a study without pictures (``view`` and ``file`` None).

    ``file`` is absolute, or relative to the manifest's folder. ``view`` is None with a file where the source does
    not tell the view; such a picture is kept in the manifest and used by nothing. ``findings`` and ``impression`` are
    cleaned text, empty when missing; an absent impression is never filled from the findings. ``labels`` carry the
    source's own names. ``age`` is in years, ``sex`` is ``"F"`` or ``"M"``; None is unknown.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    study: str
    subject: str
    split: Split
    view: View | None = None
    file: str | None = None
    findings: str = ""
    impression: str = ""
    labels: tuple[str, ...] = ()
    age: float | None = None
    sex: Literal["F", "M"] | None = None
    source: str = ""
    licence: str = ""

    @field_validator("study", "subject")
    @classmethod
    def _is_named(cls, value: str) -> str:
        if not value.strip() or value != value.strip():
            raise ValueError("must be a name without surrounding blanks")
        return value

    @field_validator("file")
    @classmethod
    def _is_path(cls, value: str | None) -> str | None:
        if value is not None and not value.strip():
            raise ValueError("must be a path or null, not empty")
        return value

    @field_validator("labels")
    @classmethod
    def _are_named(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if any(not label.strip() for label in value):
            raise ValueError("must not hold empty names")
        return value

    @field_validator("age")
    @classmethod
    def _is_age(cls, value: float | None) -> float | None:
        if value is not None and not (math.isfinite(value) and 0 <= value <= 120):
            raise ValueError("must be between 0 and 120 years or null")
        return value

    @model_validator(mode="after")
    def _view_has_file(self) -> Row:
        if self.view is not None and self.file is None:
            raise ValueError("a row with a view needs a file")
        return self


# What all rows of one study must agree on, because it belongs to the study and not to the picture.
_STUDY_FIELDS = ("subject", "split", "findings", "impression", "labels", "age", "sex", "source", "licence")


def split_of(subject: str, *, val: float = 0.1, test: float = 0.1, salt: str = "xgem") -> Split:
    """Split of a subject where the source has none: fixed shares of the subjects' hashes, on every machine alike."""
    share = int.from_bytes(hashlib.sha256(f"{salt}:{subject}".encode()).digest()[:8], "big") / 2**64
    return "test" if share < test else "val" if share < test + val else "train"


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"]) or "row"
    return f"{where}: {first['msg']} (got {first['input']!r:.80})"


@dataclass(frozen=True)
class Manifest:
    """The rows of a data set and the folder that their relative files start from."""

    rows: tuple[Row, ...]
    root: Path

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Manifest:
        """Read a ``.parquet`` or ``.jsonl`` manifest. The schema is checked row by row.

        Raises:
            ManifestError: the file is missing, empty, of another kind, or a row breaks the schema (named by number).
        """
        path = Path(path)
        if not path.is_file():
            raise ManifestError(f"{path}: no such manifest; make one with `xgem data prepare`")
        records = _reader(path)(path)
        if not records:
            raise ManifestError(f"{path}: the manifest has no rows; expected one row a picture")
        rows: list[Row] = []
        for number, record in enumerate(records, start=1):
            try:
                rows.append(Row.model_validate(record))
            except ValidationError as error:
                raise ManifestError(f"{path}: row {number}: {_one_line(error)}") from error
        return cls(tuple(rows), path.resolve().parent)

    def write(self, path: str | os.PathLike[str], *, overwrite: bool = True) -> None:
        """Write as ``.parquet`` or ``.jsonl``, by the ending; in one piece, never half of it.

        Relative files are kept when ``path`` lies in the manifest's root and made absolute otherwise.

        Raises:
            ManifestError: the ending is neither.
            OutputError: the place cannot be written, or the file exists and ``overwrite`` is false.
        """
        path = Path(path)
        writer = _writer(path)
        if path.exists() and not overwrite:
            raise OutputError(f"{path}: exists already; choose another name or pass --overwrite")
        moved = path.resolve().parent != self.root.resolve()
        rows = [
            row.model_copy(update={"file": str(self.file(row))}) if moved and row.file else row for row in self.rows
        ]
        partial = path.with_name(f".{path.name}.{os.getpid()}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            writer(rows, partial)
            partial.replace(path)
        except OSError as error:
            raise OutputError(f"{path}: cannot be written ({error.strerror or error}); choose another place") from error
        finally:
            if partial.exists():
                partial.unlink()

    def file(self, row: Row) -> Path | None:
        """Absolute path of a row's picture, None for a report without one."""
        return None if row.file is None else _absolute(self.root / row.file)

    def studies(self, split: str | None = None) -> list[Study]:
        """The studies of a split (all of them by default), sorted by id; pictures in the order of the rows.

        Raises:
            ManifestError: the split is unknown, or a study's rows contradict each other.
        """
        if split is not None and split not in SPLITS:
            raise ManifestError(f"unknown split {split!r}; expected one of {', '.join(SPLITS)}")
        groups: dict[str, list[Row]] = {}
        for row in self.rows:
            if split is None or row.split == split:
                groups.setdefault(row.study, []).append(row)
        return [self._study(groups[study]) for study in sorted(groups)]

    def _study(self, rows: Sequence[Row]) -> Study:
        first = rows[0]
        for row in rows[1:]:
            for name in _STUDY_FIELDS:
                if getattr(row, name) != getattr(first, name):
                    raise ManifestError(f"study {first.study!r}: two rows differ in {name}; make them equal")
        pictures: dict[str, list[Path]] = {}
        for row in rows:
            path = self.file(row)
            if row.view is not None and path is not None:
                pictures.setdefault(row.view, []).append(path)
        return Study(
            id=first.study,
            subject=first.subject,
            split=first.split,
            pictures={view: tuple(pictures[view]) for view in sorted(pictures)},
            findings=first.findings,
            impression=first.impression,
            labels=first.labels,
            age=first.age,
            sex=first.sex,
            source=first.source,
            licence=first.licence,
        )

    def check(self, files: bool = True) -> None:
        """Check what no single row shows: duplicates, contradictions, leaks between splits, missing files.

        Args:
            files: also look for every picture on the disk.

        Raises:
            ManifestError: names the first row (counted from 1) that breaks a rule.
        """
        splits: dict[str, tuple[str, int]] = {}
        studies: dict[str, tuple[Row, int]] = {}
        seen: dict[tuple[str, Path | None], int] = {}
        owners: dict[Path, tuple[str, int]] = {}
        for number, row in enumerate(self.rows, start=1):
            split, where = splits.setdefault(row.subject, (row.split, number))
            if split != row.split:
                raise ManifestError(
                    f"row {number}: subject {row.subject!r} is in split {row.split!r} but in {split!r} at row {where}; "
                    "split by subject"
                )
            first, where = studies.setdefault(row.study, (row, number))
            for name in _STUDY_FIELDS:
                if getattr(first, name) != getattr(row, name):
                    raise ManifestError(
                        f"row {number}: study {row.study!r} differs in {name} from row {where}; "
                        "a study has one subject, one split and one report"
                    )
            path = self.file(row)
            if (where := seen.setdefault((row.study, path), number)) != number:
                what = row.file or "its report without a picture"
                raise ManifestError(f"row {number}: study {row.study!r} holds {what} twice, first at row {where}")
            if path is None:
                continue
            study, where = owners.setdefault(path, (row.study, number))
            if study != row.study:
                raise ManifestError(f"row {number}: {row.file} belongs to study {study!r} already, at row {where}")
            if files and not path.is_file():
                raise ManifestError(
                    f"row {number}: study {row.study!r}: no such file {path}; correct it or drop the row"
                )

    def summary(self) -> dict[str, Any]:
        """Counts for people: rows, studies, subjects, pictures by split and view, reports."""
        studies = self.studies()
        return {
            "rows": len(self.rows),
            "studies": len(studies),
            "subjects": len({study.subject for study in studies}),
            "splits": dict(sorted(Counter(study.split for study in studies).items())),
            "pictures": {
                f"{split}/{view}": count
                for (split, view), count in sorted(
                    Counter((row.split, row.view or "unknown view") for row in self.rows if row.file).items()
                )
            },
            "impressions": sum(bool(study.impression) for study in studies),
            "findings": sum(bool(study.findings) for study in studies),
        }


def place(file: Path, root: Path) -> str:
    """How a manifest in ``root`` names ``file``: relative where it lies below, absolute otherwise."""
    file, root = _absolute(file), _absolute(root)
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def _absolute(path: Path) -> Path:
    # Not Path.resolve: a picture that is a symbolic link keeps the name that the manifest gives it.
    return Path(os.path.abspath(path))  # noqa: PTH100


def _read_jsonl(path: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    try:
        # Not splitlines: texts may hold other line ends (U+0085, U+2028), which JSON leaves as they are.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not readable as UTF-8 text; expected one JSON object a line") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ManifestError(
                f"{path}: line {number} is not JSON ({error.msg}); expected one object a line"
            ) from error
        if not isinstance(record, dict):
            raise ManifestError(f"{path}: line {number} is {type(record).__name__}; expected a JSON object")
        records.append(record)
    return records


def _write_jsonl(rows: Iterable[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(row.model_dump(mode="json"), ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _read_parquet(path: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(path).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ManifestError(f"{path}: not a readable Parquet file; it may be truncated, prepare it again") from error


def _write_parquet(rows: Sequence[Row], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = dict.fromkeys(Row.model_fields, pa.string()) | {"labels": pa.list_(pa.string()), "age": pa.float64()}
    schema = pa.schema(list(types.items()), metadata={"xgem_manifest": SCHEMA_VERSION})
    pq.write_table(pa.Table.from_pylist([row.model_dump(mode="json") for row in rows], schema=schema), path)


def _reader(path: Path) -> Callable[[Path], list[dict[str, Any]]]:
    return _by_ending(path, {".parquet": _read_parquet, ".jsonl": _read_jsonl})


def _writer(path: Path) -> Callable[[Sequence[Row], Path], None]:
    return _by_ending(path, {".parquet": _write_parquet, ".jsonl": _write_jsonl})


def _by_ending(path: Path, choices: dict[str, F]) -> F:
    if path.suffix.lower() not in choices:
        raise ManifestError(f"{path}: unknown ending {path.suffix!r}; a manifest ends in {' or '.join(choices)}")
    return choices[path.suffix.lower()]
