"""Tables as Markdown and CSV text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table without a final newline; line breaks in cells become ``<br>``, None an empty cell."""

    def line(cells: Iterable[Any]) -> str:
        texts = ("" if cell is None else str(cell) for cell in cells)
        return "| " + " | ".join(text.replace("|", "\\|").replace("\n", "<br>") for text in texts) + " |"

    return "\n".join([line(heads), "|" + "---|" * len(heads), *map(line, rows)])


def csv_text(heads: Sequence[str], rows: Iterable[Sequence[Any] | Mapping[str, Any]]) -> str:
    """CSV text with a header; rows are sequences, or mappings by column. None and missing values are empty cells."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(heads)
    for row in rows:
        cells = [row.get(head) for head in heads] if isinstance(row, Mapping) else row
        table.writerow(["" if cell is None else cell for cell in cells])
    return stream.getvalue()
