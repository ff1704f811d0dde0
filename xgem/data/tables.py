"""Tables as they come: CSV and its relatives, Excel and Parquet, read whole or refused; and what their cells mean."""

from __future__ import annotations

import csv
import gzip
import io
import logging
import math
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from xgem.data.rows import SPLITS
from xgem.types import DataError

logger = logging.getLogger(__name__)

SEPARATORS: Final = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}
MISSING: Final = frozenset({"", "nan", "null", "none", "n/a", "na", "<na>", "#n/a", "nat", "-", "--"})
"""Words of a cell that stand for a missing value, in any case and with full stops behind them."""
_MARKS: Final = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_SPLITS: Final = {
    **{name: name for name in SPLITS},
    **dict.fromkeys(("training", "development"), "train"),
    **dict.fromkeys(("valid", "validate", "validation", "dev", "tune"), "val"),
    **dict.fromkeys(("testing", "holdout"), "test"),
}


@dataclass(frozen=True)
class Table:
    """A table with a header; cells are text without surrounding blanks, empty where missing.

    ``lines`` are the numbers of the rows in the file, the header being 1; ``how`` says how the file was read.
    """

    path: Path
    header: tuple[str, ...]
    rows: tuple[Mapping[str, str], ...]
    lines: tuple[int, ...]
    how: str

    def require(self, *columns: str) -> None:
        """Refuse a table without one of ``columns``.

        Raises:
            DataError: names the missing column and those that are there.
        """
        missing = [column for column in columns if column not in self.header]
        if missing:
            raise DataError(
                f"{self.path}: column {missing[0]!r} is missing; expected {', '.join(columns)}; the header "
                f"({self.how}) has {', '.join(self.header) or 'no columns'}"
            )


def read_table(path: Path, *columns: str, encoding: str | None = None, separator: str | None = None) -> Table:
    """Read a table by its kind: ``.parquet``, ``.xlsx``, or text with a separator, which may be packed (``.gz``).

    Text is UTF-8 or what its byte order mark says, else Windows-1252, with a warning. The separator is the one of
    :data:`SEPARATORS` that the header has most of. A row must have as many cells as the header: one too many is an
    unquoted separator, and would move a report's text into other columns. Empty cells behind the last column are fine.

    Args:
        columns: that it must have.
        encoding, separator: of text, where they are known.

    Raises:
        DataError: unreadable, no header, a column twice or missing, or a row with other cells than the header: names
            the line, the cells, and the likely cause.
    """
    read = {".parquet": _read_parquet, ".xlsx": _read_excel}.get(path.suffix.lower())
    table = read(path) if read else _read_text(path, encoding, separator)
    table.require(*columns)
    return table


def is_missing(text: str) -> bool:
    """Whether a cell holds nothing, or a word that stands for nothing: "nan", "NULL.", "N/A", "."."""
    return text.strip().rstrip(".").strip().lower() in MISSING


def _table(path: Path, header: Sequence[str], rows: Sequence[tuple[int, Sequence[str]]], how: str) -> Table:
    names = [name.strip() for name in header]
    while names and not names[-1]:
        names.pop()
    twice = next((name for name, count in Counter(names).items() if name and count > 1), None)
    if not names or twice is not None:
        problem = f"column {twice!r} is there twice" if twice else "no header"
        raise DataError(f"{path}: {problem}; expected a different name for each column")
    records: list[dict[str, str]] = []
    for line, cells in rows:
        surplus = [cell for cell in cells[len(names) :] if cell.strip()]
        if surplus or len(cells) < len(names):
            raise DataError(
                f"{path}: line {line} has {len(cells)} cells, the header ({how}) has {len(names)}; "
                + (f"the first one too many is {surplus[0]!r:.60}; " if surplus else "")
                + "put quotes around texts that hold the separator or a line break"
            )
        values = zip(names, cells, strict=False)
        records.append({name: "" if is_missing(cell) else cell.strip() for name, cell in values if name})
    return Table(path, tuple(name for name in names if name), tuple(records), tuple(line for line, _ in rows), how)


def _read_text(path: Path, encoding: str | None, separator: str | None) -> Table:
    text, encoding = _decoded(path, encoding)
    head = text.split("\n", 1)[0]
    counts = {mark: _count_outside_quotes(head, mark) for mark in SEPARATORS}
    separator = separator or max(counts, key=lambda mark: counts[mark])
    how = f"{encoding}, {SEPARATORS.get(separator, separator)}"
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    rows: list[tuple[int, list[str]]] = []
    start = 1
    try:
        for cells in reader:
            if any(map(str.strip, cells)):
                rows.append((start, cells))
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(
            f"{path}: line {start}: not a row of a CSV table ({error}; read as {how}); a quote inside a text is "
            'written twice: ""'
        ) from None
    if not rows:
        raise DataError(f"{path}: the table is empty; expected a header and rows")
    return _table(path, rows[0][1], rows[1:], how)


def _count_outside_quotes(line: str, mark: str) -> int:
    return sum(part.count(mark) for part in line.split('"')[::2])


def _decoded(path: Path, encoding: str | None) -> tuple[str, str]:
    """A file's text, and the encoding it was read in."""
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix.lower() == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read as a table ({getattr(error, 'strerror', None) or error})") from None
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    chosen = encoding or marked or "utf-8"
    try:
        return data.decode(chosen), chosen.removesuffix("-sig").upper()
    except (UnicodeDecodeError, LookupError) as error:
        if encoding or marked:
            raise DataError(f"{path}: not readable as {chosen} ({error}); name its encoding") from None
        line = data[: getattr(error, "start", 0)].count(b"\n") + 1
    try:
        text = data.decode("cp1252")
    except UnicodeDecodeError:
        raise DataError(
            f"{path}: line {line} is neither UTF-8 nor Windows-1252 text; save the table as UTF-8"
        ) from None
    logger.warning("%s: line %d is not UTF-8, so the table was read as Windows-1252", path, line)
    return text, "Windows-1252"


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        read = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from None
    rows = [(k, [_written(cell) for cell in record.values()]) for k, record in enumerate(read.to_pylist(), start=2)]
    return _table(path, read.column_names, rows, "Parquet")


def _read_excel(path: Path) -> Table:
    """The first sheet of a workbook."""
    import openpyxl

    try:
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
    # A damaged workbook raises whatever its zip and XML readers do
    except Exception as error:
        raise DataError(f"{path}: not a readable Excel workbook ({error})") from None
    sheet = book.worksheets[0]
    every = [[_written(cell) for cell in row] for row in sheet.iter_rows(values_only=True)]
    book.close()
    rows = [(number, cells) for number, cells in enumerate(every, start=1) if any(cells)]
    if not rows:
        raise DataError(f"{path}: the first sheet is empty; expected a header and rows")
    return _table(path, rows[0][1], rows[1:], f"Excel, sheet {sheet.title!r}")


def _written(value: object) -> str:
    """A typed cell as text: whole numbers without a fraction, lists separated by bars."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "|".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _by_lower_case(known: Mapping[str, str]) -> Callable[[str], str | None]:
    return lambda text: known.get(text.strip().lower())


sex_of = _by_lower_case(
    {"f": "F", "female": "F", "w": "F", "woman": "F", "m": "M", "male": "M", "man": "M"},
)
"""A cell's sex as "F" or "M"; None where it is neither."""
split_of_name = _by_lower_case(_SPLITS)
"""A split by any of its usual names ("valid", "Train") as ``train``, ``val`` or ``test``; None for another word."""


def number_of(text: str, where: str) -> float:
    """A cell as a finite number; ``where`` names it.

    Raises:
        DataError: it is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise DataError(f"{where} is {text!r}; expected a number")
    return value


def years_of(text: str) -> float | None:
    """Age in years: "61", and DICOM's "061Y", "011M", "003W", "006D"; None where it cannot be."""
    text = text.strip().upper()
    unit = {"Y": 1.0, "M": 1 / 12, "W": 7 / 365.25, "D": 1 / 365.25}.get(text[-1:], 1.0)
    try:
        years = float(text.rstrip("YMWD")) * unit
    except ValueError:
        return None
    return years if 0 <= years <= 120 else None
