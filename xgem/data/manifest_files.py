"""The files of manifests: ``.parquet`` and ``.jsonl``, read row by row."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from xgem.configs.reading import ReadOptions
from xgem.data.rows import ANNOTATIONS, LATER, LATEST, Row
from xgem.types import ManifestError

SCHEMA_VERSION = "4"
# "1" had no annotations, "2" neither reading nor guessed views, "3" no qualified findings and pixel aspects
_READ_VERSIONS = ("1", "2", "3", SCHEMA_VERSION)
_OPTIONAL = (*ANNOTATIONS, *LATER, *LATEST)
_ROWS = 4096  # rows of a Parquet file that are in memory at once
F = TypeVar("F")


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The rows of a manifest as they are written, one after the other; their schema is not checked.

    Raises:
        ManifestError: no such file, of another kind, or not readable as one of its kind.
    """
    if not path.is_file():
        raise ManifestError(f"{path}: no such manifest; make one with `xgem data prepare`")
    return _by_ending(path, {".parquet": _read_parquet, ".jsonl": _read_jsonl})(path)


def writer(path: Path) -> Callable[[Sequence[Row], Path], None]:
    """What writes a file with this ending; ManifestError for others."""
    return _by_ending(path, {".parquet": _write_parquet, ".jsonl": _write_jsonl})


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    number = 0
    try:
        # Lines end in \n alone: texts may hold other line ends (U+0085, U+2028), which JSON leaves as they are.
        with path.open(encoding="utf-8", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    yield parsed(line, f"{path}: line {number}")
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: not readable as UTF-8 text; expected one JSON object a line") from error


def parsed(line: str | bytes, where: str) -> dict[str, Any]:
    """The row in a line of a ``.jsonl`` manifest; ManifestError says ``where`` it is none."""
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise ManifestError(f"{where} is not JSON ({error.msg}); expected one object a line") from error
    if not isinstance(record, dict):
        raise ManifestError(f"{where} is {type(record).__name__}; expected a JSON object")
    return record


def _record(row: Row) -> dict[str, Any]:
    # What a row lacks is not written: a manifest without any has the form of version 1.
    record = row.model_dump(mode="json")
    kept = {name: value for name, value in record.items() if name not in _OPTIONAL or value not in (None, {}, [])}
    if not row.view_guessed:
        del kept["view_guessed"]
    return kept


def _write_jsonl(rows: Iterable[Row], path: Path) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(_record(row), ensure_ascii=False) + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            version = (file.schema_arrow.metadata or {}).get(b"xgem_manifest", b"1").decode()
            if version not in _READ_VERSIONS:
                raise ManifestError(
                    f"{path}: a manifest of version {version}; expected {' or '.join(_READ_VERSIONS)}; "
                    "update xgem or prepare it again"
                )
            for batch in file.iter_batches(_ROWS):
                for record in batch.to_pylist(maps_as_pydicts="strict"):
                    # A null is something that this row lacks and another has.
                    yield {name: v for name, v in record.items() if v is not None or name not in _OPTIONAL}
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ManifestError(f"{path}: not a readable Parquet file; it may be truncated, prepare it again") from error


def _write_parquet(rows: Sequence[Row], path: Path) -> None:
    write_parquet(lambda: iter([rows]), path)


def write_parquet(parts: Callable[[], Iterator[Sequence[Row]]], path: Path) -> None:
    """Write a ``.parquet`` manifest whose rows come in ``parts``, one of which is in memory at once.

    ``parts`` is called twice: columns depend on what all rows have.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    written, squashed = set[str](), False
    for rows in parts():
        written |= set[str]().union(*map(_record, rows))
        squashed |= any(row.reading.pixel_aspect is not None for row in rows)
    schema = _schema(written, squashed)
    with pq.ParquetWriter(path, schema) as file:
        for rows in parts():
            file.write_table(pa.Table.from_pylist([_record(row) for row in rows], schema=schema))


def _schema(written: set[str], squashed: bool) -> Any:
    """The columns ``written``; ``squashed``: some images have a pixel aspect."""
    import pyarrow as pa

    box = pa.struct([("label", pa.string()), *((side, pa.float64()) for side in "xywh")])
    kinds = {"invert": pa.bool_(), "allow_any": pa.bool_(), "pixel_aspect": pa.float64()}
    options = [name for name in ReadOptions.model_fields if squashed or name != "pixel_aspect"]
    types = dict.fromkeys(Row.model_fields, pa.string()) | {
        "labels": pa.list_(pa.string()),
        "age": pa.float64(),
        "severity": pa.float64(),
        "masks": pa.map_(pa.string(), pa.list_(pa.string())),
        "boxes": pa.list_(box),
        "reading": pa.struct([(name, kinds.get(name, pa.string())) for name in options]),
        "view_guessed": pa.bool_(),
        "qualified": pa.list_(pa.string()),
    }
    version = SCHEMA_VERSION if squashed or written & {*LATEST} else "3" if written & {*LATER} else "2"
    return pa.schema(
        [(name, kind) for name, kind in types.items() if name in written], metadata={"xgem_manifest": version}
    )


def _by_ending(path: Path, choices: dict[str, F]) -> F:
    if path.suffix.lower() not in choices:
        raise ManifestError(f"{path}: unknown ending {path.suffix!r}; a manifest ends in {' or '.join(choices)}")
    return choices[path.suffix.lower()]
