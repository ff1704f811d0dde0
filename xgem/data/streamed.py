"""A manifest whose rows stay on the disk: what is in memory is the place of each row, by study."""

from __future__ import annotations

import json
from array import array
from pathlib import Path

import numpy as np

from xgem.data.manifest import Manifest
from xgem.data.manifest_files import parsed, records
from xgem.data.rows import SPLITS, checked_row
from xgem.types import ManifestError
from xgem.utils.files import file_sha256, locked, replacing
from xgem.utils.progress import track


class StreamedManifest:
    """The studies of a manifest, sorted by id as :meth:`Manifest.studies` sorts them, read in parts.

    Rows are read from their places in the ``.jsonl`` file; a ``.parquet`` file is written as one into ``folder`` first,
    once for all processes that read it there. A row takes 12 bytes of memory, and the ids of the studies while the
    file is opened.

    Raises:
        ManifestError: the manifest is missing, empty, of another kind, or not readable; or a subject is in two splits.
    """

    def __init__(self, path: Path, folder: Path) -> None:
        self.root = path.resolve().parent
        self.name = str(path)
        lines = records(path)  # checks that there is such a file, of a known kind
        self.sha256 = file_sha256(path)
        self.file = path
        self.is_copied = path.suffix.lower() != ".jsonl"
        if self.is_copied:
            self.file = folder / f"rows-{self.sha256}.jsonl"
            with locked(folder):
                if not self.file.exists():
                    with replacing(self.file) as partial, partial.open("w", encoding="utf-8") as stream:
                        stream.writelines(json.dumps(record) + "\n" for record in track(lines, "reading rows"))
        self._places: dict[str, np.ndarray] = {}  # by split: where each row starts in the file, sorted by study
        self._firsts: dict[str, np.ndarray] = {}  # by split: the first of these rows of each study, and their number
        self._stream = self.file.open("rb")  # stays readable, should another process delete the copy
        self._find()

    def _find(self) -> None:
        studies: dict[str, list[str]] = {split: [] for split in SPLITS}
        places = {split: array("q") for split in SPLITS}
        owners: dict[str, str] = {}
        place = 0
        for number, line in enumerate(self._stream, start=1):
            if line.strip():
                record = parsed(line, f"{self.name}: line {number}")
                split, study, subject = (str(record.get(name)) for name in ("split", "study", "subject"))
                if split not in places:
                    checked_row(record, f"{self.name}: line {number}")
                if owners.setdefault(subject, split) != split:
                    raise ManifestError(
                        f"{self.name}: line {number}: subject {subject!r} is in split {split!r} and in "
                        f"{owners[subject]!r}; split by subject"
                    )
                studies[split].append(study)
                places[split].append(place)
            place += len(line)
        if not any(places.values()):
            raise ManifestError(f"{self.name}: the manifest has no rows; expected one row an image")
        for split, ids in studies.items():
            order = sorted(range(len(ids)), key=ids.__getitem__)  # stable: rows of a study stay in their order
            firsts = [i for i, row in enumerate(order) if i == 0 or ids[row] != ids[order[i - 1]]]
            self._places[split] = np.frombuffer(places[split], dtype=np.int64)[order]
            self._firsts[split] = np.array([*firsts, len(order)], dtype=np.int32)

    def count(self, split: str) -> int:
        """The number of studies of a split."""
        return len(self._firsts[split]) - 1

    def part(self, split: str, studies: range) -> Manifest:
        """The rows of some studies of a split, by their numbers in the order of ids; a manifest that is checked.

        Raises:
            ManifestError: a row breaks the schema, or a study's rows contradict each other.
        """
        first, last = self._firsts[split][[studies.start, studies.stop]]
        rows = []
        for place in self._places[split][first:last]:
            self._stream.seek(int(place))
            record = json.loads(self._stream.readline())
            rows.append(checked_row(record, f"{self.name}: study {record['study']!r}"))
        made = Manifest(tuple(rows), self.root)
        made.check(files=False)
        return made

    def close(self) -> None:
        """Close the file; no part can be read afterwards."""
        self._stream.close()

    def remove_copy(self) -> None:
        """Delete the rows that were written into the folder."""
        if self.is_copied:
            self.file.unlink(missing_ok=True)
