"""A manifest whose rows stay on the disk: what is in memory is the place of each row, by study."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from functools import lru_cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.manifest import ImageFiles, Manifest, name_in
from xgem.data.manifest_files import parsed, records
from xgem.data.rows import SPLITS, STUDY_FIELDS, Row, checked_row
from xgem.data.study import Study
from xgem.types import ManifestError, OutputError, XgemError
from xgem.utils.files import file_sha256, locked, replacing
from xgem.utils.progress import track
from xgem.utils.sequences import Computed

_RECENT = 256  # studies that are kept as they were read


class StreamedManifest:
    """The studies of a manifest, sorted by id as :meth:`Manifest.studies` sorts them, read when they are asked for.

    Rows are read from their places in the ``.jsonl`` file; a ``.parquet`` file is written as one into ``folder`` first.
    There the places are kept too, so that of all processes and starts one reads and checks every row. A row takes 12
    bytes of memory, a study 4.

    Raises:
        ManifestError: the manifest is missing, empty, of another kind, not readable, or a row breaks the schema; or
            :meth:`Manifest.check` would refuse it, files apart.
        OutputError: the folder, or that of temporary files, cannot be written.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.root = path.resolve().parent
        self.name = str(path)
        lines = records(path)  # checks that there is such a file, of a known kind
        self.sha256 = file_sha256(path)
        self.file, self._places_file = path, folder / f"rows-{self.sha256}.safetensors"
        self.is_copied = path.suffix.lower() != ".jsonl"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{folder}: cannot be written ({error.strerror}); choose another path") from error
        with locked(folder):
            if self.is_copied:
                self.file = folder / f"rows-{self.sha256}.jsonl"
                if not self.file.exists():
                    with replacing(self.file) as partial, partial.open("w", encoding="utf-8") as stream:
                        stream.writelines(json.dumps(record) + "\n" for record in track(lines, "reading rows"))
            self._stream = self.file.open("rb")  # stays readable, should another process delete the copy
            # By split: where each row starts in the file and its bytes, sorted by study, and the first row of each
            try:
                self._arrays = load_file(self._places_file)
            except (OSError, SafetensorError):  # not there, or damaged
                self._arrays = self._made()

    def _made(self) -> dict[str, np.ndarray]:
        try:
            found = self._found()
            with replacing(self._places_file) as partial:
                save_file(found, partial)
        except XgemError:
            self.close()
            raise
        return found

    def _found(self) -> dict[str, np.ndarray]:
        """The places of the rows, which are checked, one by one and together."""
        try:
            with closing(sqlite3.connect("")) as rows:  # a file for this connection alone, deleted as it is closed
                rows.execute(
                    "CREATE TABLE rows (number INTEGER PRIMARY KEY, place INTEGER, length INTEGER, split TEXT, "
                    "study TEXT, subject TEXT, file TEXT, of_study BLOB)"
                )
                rows.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?)", self._described())
                self._check(rows)
                return {name: value for split in SPLITS for name, value in _places(rows, split).items()}
        except sqlite3.Error as error:
            raise OutputError(
                f"temporary files cannot be written ({error}): set TMPDIR to a folder with room"
            ) from error

    def _described(self) -> Iterator[tuple[object, ...]]:
        """The rows of the table, from those of the file."""
        place = 0
        for number, line in enumerate(track(self._stream, "checking rows"), start=1):
            if line.strip():
                where = f"{self.name}: line {number}"
                row = checked_row(parsed(line, where), where)
                file = None if row.file is None else name_in(self.root, row.file)
                of_study = repr([row.of_study(name) for name in STUDY_FIELDS]).encode()
                digest = hashlib.blake2b(of_study, digest_size=16).digest()
                yield number, place, len(line), row.split, row.study, row.subject, file, digest
            place += len(line)

    def _check(self, rows: sqlite3.Connection) -> None:
        """What no single row shows."""

        def first(query: str, *values: object) -> tuple[object, ...] | None:
            return rows.execute(f"{query} LIMIT 1", values).fetchone()

        if first("SELECT 1 FROM rows") is None:
            raise ManifestError(f"{self.name}: the manifest has no rows; expected one row an image")
        if found := first("SELECT subject FROM rows GROUP BY subject HAVING MIN(split) < MAX(split)"):
            (subject,) = found
            ((_, split),) = rows.execute("SELECT MIN(number), split FROM rows WHERE subject = ?", (subject,))
            number, other = rows.execute(
                "SELECT MIN(number), split FROM rows WHERE subject = ? AND split <> ?", (subject, split)
            ).fetchone()
            raise ManifestError(
                f"{self.name}: line {number}: subject {subject!r} is in split {other!r} and in {split!r}; "
                "split by subject"
            )
        if found := first("SELECT study FROM rows GROUP BY study HAVING COUNT(DISTINCT of_study) > 1"):
            places = rows.execute("SELECT place, length FROM rows WHERE study = ? ORDER BY number", found)
            of_study = [self._row(self._read(*place)) for place in places]
            Manifest(tuple(of_study), self.root).check(files=False)  # says in what they differ
        twice = "SELECT MIN(number), MAX(number), {0} FROM rows WHERE file {1} GROUP BY {0} HAVING COUNT(*) > 1"
        if found := first(twice.format("file", "NOT NULL")):
            raise ManifestError(f"{self.name}: line {found[1]}: {found[2]} is in line {found[0]} already; drop one")
        if found := first(twice.format("study", "IS NULL")):
            raise ManifestError(
                f"{self.name}: line {found[1]}: study {found[2]!r} holds its report without an image twice, first in "
                f"line {found[0]}"
            )

    def count(self, split: str) -> int:
        """The number of studies of a split."""
        return len(self._arrays[f"{split}.firsts"]) - 1

    def part(self, split: str, studies: range) -> Manifest:
        """The rows of some studies of a split, by their numbers in the order of ids."""
        return Manifest(tuple(map(self._row, self._lines(split, studies))), self.root)

    def studies(self, split: str) -> Sequence[Study]:
        """Those of a split, sorted by id, each read when it is asked for."""

        @lru_cache(_RECENT)
        def study(number: int) -> Study:
            return self.part(split, range(number, number + 1)).studies()[0]

        return Computed(self.count(split), study)

    def image_files(self, split: str) -> Iterator[ImageFiles]:
        """As :meth:`Manifest.image_files`; rows are not checked again, which takes most of the time."""
        for number in range(self.count(split)):
            yield self._images(self._lines(split, range(number, number + 1)))

    def _images(self, lines: Iterator[bytes]) -> ImageFiles:
        views: dict[str, list[tuple[str, ReadOptions]]] = {}
        of_study: ReadOptions | None = None
        for line in lines:
            record = json.loads(line)
            view, file, read = (record.get(name) for name in ("view", "file", "reading"))
            reading = ReadOptions.model_validate(read) if read else AS_STATED
            of_study = of_study or reading.of_study
            if view is not None and file is not None:
                how = of_study.model_copy(update={"pixel_aspect": reading.pixel_aspect})
                one = name_in(self.root, file), of_study if reading.pixel_aspect is None else how
                views.setdefault(view, []).append(one)
        return [one for view in sorted(views) for one in views[view]]

    def _lines(self, split: str, studies: range) -> Iterator[bytes]:
        first, last = self._arrays[f"{split}.firsts"][[studies.start, studies.stop]]
        for row in range(first, last):
            yield self._read(*(int(self._arrays[f"{split}.{name}"][row]) for name in ("places", "lengths")))

    def _read(self, place: int, length: int) -> bytes:
        if hasattr(os, "pread"):  # forked workers share the position in the file
            return os.pread(self._stream.fileno(), length, place)
        self._stream.seek(place)
        return self._stream.read(length)

    def _row(self, line: bytes) -> Row:
        return checked_row(parsed(line, f"{self.name}: a row"), f"{self.name}: a row")

    def close(self) -> None:
        """Close the file; no part can be read afterwards."""
        self._stream.close()

    def remove_copy(self) -> None:
        """Delete what was written into the folder."""
        self._places_file.unlink(missing_ok=True)
        if self.is_copied:
            self.file.unlink(missing_ok=True)


def _places(rows: sqlite3.Connection, split: str) -> dict[str, np.ndarray]:
    places, lengths, firsts = array("q"), array("I"), array("I")
    before = None
    query = "SELECT place, length, study FROM rows WHERE split = ? ORDER BY study, number"
    for number, (place, length, study) in enumerate(rows.execute(query, (split,))):
        places.append(place)
        lengths.append(length)
        if study != before:
            firsts.append(number)
        before = study
    firsts.append(len(places))
    found = {"places": places, "lengths": lengths, "firsts": firsts}
    return {f"{split}.{name}": np.asarray(values) for name, values in found.items()}
