"""Tables as Markdown and as CSV text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def markdown_table(heads: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A Markdown table, without a line break at its end; line breaks in cells become ``<br>``, None an empty cell."""

    def line(cells: Iterable[Any]) -> str:
        texts = ("" if cell is None else str(cell) for cell in cells)
        return "| " + " | ".join(text.replace("|", "\\|").replace("\n", "<br>") for text in texts) + " |"

    return "\n".join([line(heads), "|" + "---|" * len(heads), *map(line, rows)])


def csv_text(heads: Sequence[str], rows: Iterable[Sequence[Any] | Mapping[str, Any]]) -> str:
    """CSV text with a header; rows are sequences, or mappings by the heads. None and what a row lacks is empty."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(heads)
    for row in rows:
        cells = [row.get(head) for head in heads] if isinstance(row, Mapping) else row
        table.writerow(["" if cell is None else cell for cell in cells])
    return stream.getvalue()
