"""The folder that a curation works in: what is done lies there in parts, each whole or not at all.

::

    manifest.parquet decisions.parquet README.md costs.json     the result
    images/                             pictures that were turned or inverted
    .curation/begun.json                the plan that it was begun with
    .curation/sources/NAME-*.parquet    manifests of the sources that are folders
    .curation/rows.sqlite               all rows in order, subjects and splits
    .curation/rows/PART.jsonl           the same in parts, which end where a study ends
    .curation/seen/PART.parquet         what was seen in each image; PART.thumbnails.npy, PART.vectors.npy
    .curation/index.npz                 fingerprints by cell
    .curation/pairs/PART.parquet        copies of the part's pictures
    .curation/copies.parquet splits.json    which copy is kept; splits that change
    .curation/decided/PART.parquet      decisions, texts, and rows of the manifest
    .curation/answers/                  what endpoints answered
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from xgem.types import DataError, OutputError
from xgem.utils.files import check_output_folder, one_line, replacing, write_json

STATE: Final = ".curation"
FINAL: Final = ("manifest.parquet", "decisions.parquet", "README.md", "costs.json")


class Folder:
    """Places in a curation's folder, and the parts that lie there."""

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).absolute()
        self.state = self.root / STATE

    def open(self) -> None:
        """Make the folder; OutputError if it holds other files, or cannot be written."""
        check_output_folder(self.root, overwrite=self.state.is_dir())
        try:
            self.state.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"{self.root}: cannot be written ({error.strerror}); choose another folder") from error

    def begin(self, record: dict[str, Any]) -> None:
        """Note what is begun; OutputError if another curation was begun here."""
        begun = self.state / "begun.json"
        if not begun.exists():
            self.write(begun, record)
        elif changed := [name for name, value in record.items() if self.read(begun).get(name) != value]:
            raise OutputError(
                f"{self.root}: was begun with another {' and '.join(changed)}; choose another folder, or take the "
                "change back"
            )

    def read(self, file: Path) -> Any:
        """The values of a JSON file of this folder."""
        try:
            return json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise DataError(f"{file}: cannot be read ({one_line(error)}); curate into a new folder") from error

    def write(self, file: Path, values: Any) -> None:
        """Values as a JSON file, whole or not at all."""
        with replacing(file) as partial:
            write_json(partial, values)

    def file(self, kind: str, part: int, ending: str = "parquet") -> Path:
        """The file of a part."""
        return self.state / kind / f"{part:06d}.{ending}"

    def missing(self, kind: str, parts: int) -> list[int]:
        """Numbers of the parts of a kind that are not there."""
        return [part for part in range(parts) if not self.file(kind, part).exists()]

    @property
    def parts(self) -> int:
        """The number of parts."""
        return len(self.starts) - 1

    @property
    def starts(self) -> list[int]:
        """The first row of each part, and the number of all rows."""
        return self.read(self.state / "listed.json")["starts"]

    @property
    def answers(self) -> Path:
        """Where endpoints' answers are kept."""
        return self.state / "answers"


def write_table(file: Path, records: Sequence[dict[str, Any]], schema: Any) -> None:
    """A Parquet file of records, whole or not at all; a file without records has the columns."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with replacing(file) as partial:
        pq.write_table(pa.Table.from_pylist(list(records), schema=schema), partial)


def read_table(file: Path, columns: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The records of a Parquet file of this folder."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_table(file, columns=list(columns) if columns else None).to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise DataError(
            f"{file}: cannot be read ({one_line(error)}); delete it, and the same command makes it"
        ) from error


def save_array(file: Path, array: Any) -> None:
    """An array as ``.npy``, whole or not at all."""
    with replacing(file) as partial, partial.open("wb") as stream:
        np.save(stream, array)


def in_order(folder: Folder, kind: str, columns: Sequence[str] | None = None) -> Iterator[dict[str, Any]]:
    """The records of all parts of a kind, one part in memory at a time."""
    for part in range(folder.parts):
        yield from read_table(folder.file(kind, part), columns)
