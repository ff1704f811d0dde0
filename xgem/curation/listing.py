"""The rows of all sources in one order, in parts that work on them can be shared by."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xgem.curation.folder import Folder
from xgem.curation.plan import CurationPlan, SourcePlan
from xgem.data.manifest import name_in
from xgem.data.manifest_files import records
from xgem.data.rows import Row, checked_row
from xgem.data.sources import Source
from xgem.data.streamed import StreamedManifest
from xgem.types import ConfigError, DataError, OutputError
from xgem.utils.files import file_sha256, replacing
from xgem.utils.progress import track

_TABLES: Final = (
    "CREATE TABLE rows (number INTEGER PRIMARY KEY, source INTEGER, line INTEGER, study TEXT, record TEXT)",
    "CREATE TABLE studies (study TEXT PRIMARY KEY, source INTEGER, first INTEGER) WITHOUT ROWID",
    "CREATE TABLE subjects (subject TEXT, split TEXT, PRIMARY KEY (subject, split)) WITHOUT ROWID",
)
_IN_ORDER: Final = (
    "SELECT rows.source, rows.line, rows.study, rows.record, studies.source FROM rows JOIN studies USING (study) "
    "ORDER BY studies.first, rows.number"
)


@dataclass(frozen=True)
class Listed:
    """One row with its ``number`` in the order of the curation, its source, and its line there (from 1).

    ``clash``: the earlier source that has a study of the same id, empty if none.
    """

    number: int
    source: str
    line: int
    clash: str
    row: Row


def check_places(plan: CurationPlan) -> None:
    """Refuse a plan whose folders or manifests are not there, before anything is written.

    Raises:
        DataError: names the source.
    """
    for source in plan.sources:
        place = Path(str(source.folder or source.manifest))
        if not place.exists():
            raise DataError(f"source {source.name}: no such {'folder' if source.folder else 'manifest'} {place}")


def manifests_of(plan: CurationPlan, folder: Folder) -> dict[str, Path]:
    """The manifest of each source; those of folders are prepared, once.

    Raises:
        ConfigError, DataError, ManifestError: a source is not there or cannot be read.
    """
    found: dict[str, Path] = {}
    for source in plan.sources:
        if source.manifest is not None:
            found[source.name] = Path(source.manifest)
            if not (folder.state / "listed.json").exists():  # contradictions are said now, not after the work
                checked = StreamedManifest(found[source.name], folder.state / "check")
                checked.close()
                checked.remove_copy()
            continue
        found[source.name] = prepared_file(source, folder)
        if not found[source.name].exists():
            _prepare(source, found[source.name], folder)
    return found


def prepared_file(source: SourcePlan, folder: Folder) -> Path:
    """The manifest of a source that is a folder, by its settings: those of a corrected plan are another's."""
    settings = hashlib.sha256(source.model_dump_json().encode()).hexdigest()[:8]
    return folder.state / "sources" / f"{source.name}-{settings}.parquet"


def _prepare(source: SourcePlan, out: Path, folder: Folder) -> None:
    assert source.folder is not None
    options = {name: Path(value) if isinstance(value, str) else value for name, value in source.options.items()}
    with _warnings() as said:
        try:
            Source(source.name).module.prepare(Path(source.folder), out, **options)
        except TypeError as error:
            raise ConfigError(f"source {source.name}: options {', '.join(options)} do not fit ({error})") from None
    folder.write(out.with_suffix(".json"), said)


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """What the readers of sources warn of, for the data card."""
    said: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    kept, logger = Kept(logging.WARNING), logging.getLogger("xgem.data")
    logger.addHandler(kept)
    try:
        yield said
    finally:
        logger.removeHandler(kept)


def hashes_of(manifests: dict[str, Path]) -> dict[str, str]:
    """SHA-256 of each manifest; ManifestError if one is not there."""
    for path in manifests.values():
        records(path)  # says what is wrong with its name
    return {name: file_sha256(path) for name, path in manifests.items()}


def list_rows(plan: CurationPlan, folder: Folder, manifests: dict[str, Path]) -> None:
    """Write the rows of all sources in order, those of a study together, in parts of ``plan.part`` or a few more.

    Raises:
        ManifestError: a row breaks the schema. DataError: a source has no rows. OutputError: nothing can be written.
    """
    if (folder.state / "listed.json").exists():
        return
    database = folder.state / "rows.sqlite"
    try:
        with replacing(database) as partial, closing(sqlite3.connect(partial)) as rows:
            for setting in ("journal_mode = OFF", "synchronous = OFF", "cache_size = -64000", "temp_store = FILE"):
                rows.execute(f"PRAGMA {setting}")
            for table in _TABLES:
                rows.execute(table)
            counts = {name: _insert(rows, k, name, path) for k, (name, path) in enumerate(manifests.items())}
            rows.commit()
            starts = _write_parts(rows, folder, list(manifests), plan.part)
    except sqlite3.Error as error:
        raise OutputError(f"{database}: cannot be written ({error}); make room, and start the same command") from error
    folder.write(folder.state / "listed.json", {"starts": starts, "counts": counts})


def _insert(rows: sqlite3.Connection, index: int, name: str, path: Path) -> int:
    """Add the rows of a source, with absolute names of files; their number."""
    root, line = path.resolve().parent, 0
    for line, record in enumerate(track(records(path), f"reading {name}"), start=1):
        row = checked_row(record, f"{path}: row {line}")
        values = row.model_dump(mode="json", exclude_defaults=True)
        if row.file is not None:
            values["file"] = name_in(root, row.file)
        if row.masks:
            values["masks"] = {one: [name_in(root, file) for file in files] for one, files in row.masks.items()}
        cursor = rows.execute(
            "INSERT INTO rows (source, line, study, record) VALUES (?, ?, ?, ?)",
            (index, line, row.study, json.dumps(values, ensure_ascii=False)),
        )
        rows.execute("INSERT OR IGNORE INTO studies VALUES (?, ?, ?)", (row.study, index, cursor.lastrowid))
        rows.execute("INSERT OR IGNORE INTO subjects VALUES (?, ?)", (row.subject, row.split))
    if not line:
        raise DataError(f"source {name}: {path} has no rows; leave the source out")
    return line


def _write_parts(rows: sqlite3.Connection, folder: Folder, names: list[str], size: int) -> list[int]:
    """Write the parts; the first row of each, and the number of all."""
    starts, lines, study, number = [0], list[str](), None, 0
    for number, (source, line, name, record, owner) in enumerate(rows.execute(_IN_ORDER)):
        if len(lines) >= size and name != study:
            _write_part(folder, len(starts) - 1, lines)
            starts.append(number)
            lines = []
        study = name
        clash = json.dumps(names[owner] if owner != source else "")
        head = f'{{"number": {number}, "source": {json.dumps(names[source])}, "line": {line}, "clash": {clash}, '
        lines.append(f'{head}"row": {record}}}\n')
    _write_part(folder, len(starts) - 1, lines)
    return [*starts, number + 1]


def _write_part(folder: Folder, part: int, lines: list[str]) -> None:
    with replacing(folder.file("rows", part, "jsonl")) as partial:
        partial.write_text("".join(lines), encoding="utf-8")


def rows_of(folder: Folder, part: int) -> list[Listed]:
    """The rows of a part."""
    file = folder.file("rows", part, "jsonl")
    found: list[Listed] = []
    with file.open(encoding="utf-8", newline="\n") as stream:
        for line in stream:
            record = json.loads(line)
            found.append(Listed(**{**record, "row": checked_row(record["row"], str(file))}))
    return found


def subjects_in_two_splits(folder: Folder) -> dict[str, list[str]]:
    """Subjects that the sources put into several splits."""
    with closing(sqlite3.connect(folder.state / "rows.sqlite")) as rows:
        several = "SELECT subject FROM subjects GROUP BY subject HAVING COUNT(*) > 1"
        found: dict[str, list[str]] = {}
        for subject, split in rows.execute(f"SELECT * FROM subjects WHERE subject IN ({several}) ORDER BY 1, 2"):
            found.setdefault(subject, []).append(split)
    return found


def splits_of(folder: Folder, subjects: list[str]) -> dict[str, str]:
    """The first split of each of these subjects."""
    with closing(sqlite3.connect(folder.state / "rows.sqlite")) as rows:
        query = "SELECT MIN(split) FROM subjects WHERE subject = ?"
        return {subject: rows.execute(query, (subject,)).fetchone()[0] for subject in subjects}
