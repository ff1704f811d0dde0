"""Tables in the form of the papers, with the published figures beside those of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from xgem.eval.schema import FamilyEntry, MetricEntry
from xgem.types import ConfigError
from xgem.utils.tables import csv_text, markdown_table

RUN, PAPER = "this run", "published"
ABSENT: Final = "not among what was measured"
BY_CASE: Final = ("Brier score", "Dice by image", "F1 by image", "absolute error")
"""Rows of scores of single cases, which no paper gives: they stay in their own unit."""
NOT_COMPUTED: Final = "not computed"
_HEADS: Final = ("table", "row", "column", "by", "value", "sd", "low", "high", "n", "p", "test", "not_computed")


@dataclass(frozen=True)
class Cell:
    """A number: its mean over training runs with their standard deviation ``sd``, its 95 % interval, and the p-value of
    the difference from what the row or column is compared with; or the ``reason`` why there is none.
    """

    value: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    p: float | None = None
    test: str = ""
    reason: str = ""

    @classmethod
    def of(cls, metric: MetricEntry) -> Cell:
        """A metric of a record."""
        if metric.value is None or metric.value.value is None:
            return cls(reason=metric.not_computed or "not a finite number")
        sd = metric.settings.get("sd_over_runs")
        tested = next((one for one in metric.references.values() if one.p is not None), None)
        number = metric.value
        p, test = (None, "") if tested is None else (tested.p, tested.test)
        return cls(number.value, sd, number.low, number.high, number.n, p, test)

    def times(self, scale: float) -> Cell:
        """In the unit of the paper."""
        numbers = {name: getattr(self, name) for name in ("value", "sd", "low", "high")}
        return Cell(
            **{name: None if x is None else scale * x for name, x in numbers.items()},
            n=self.n, p=self.p, test=self.test, reason=self.reason,
        )  # fmt: skip

    def __str__(self) -> str:
        if self.value is None:
            return NOT_COMPUTED if self.reason else ""
        digits = 1 if abs(self.value) >= 100 else 2 if abs(self.value) >= 10 else 3
        text = f"{self.value:.{digits}f}"
        if self.sd is not None and math.isfinite(self.sd):
            text += f" ± {self.sd:.{digits}f}"
        return text if self.p is None else f"{text} (p {self.p:.2g})"


@dataclass
class Table:
    """One table: cells by row and column, in the order in which they come, and notes on them."""

    key: str
    title: str
    cells: dict[str, dict[str, Cell]] = field(default_factory=dict[str, dict[str, Cell]])
    notes: list[str] = field(default_factory=list[str])

    def put(self, row: str, column: str, cell: Cell) -> None:
        self.cells.setdefault(row, {})[column] = cell

    @property
    def columns(self) -> list[str]:
        return list(dict.fromkeys(column for row in self.cells.values() for column in row))


@dataclass(frozen=True)
class Beside:
    """A table with the published one. ``scale``: the paper's unit, of the whole table or by row."""

    table: Table
    source: str
    scale: Mapping[str, float]
    published: Mapping[str, Mapping[str, str]]

    @classmethod
    def of(cls, table: Table, papers: Mapping[str, Any]) -> Beside:
        """``papers``: the file of published figures, by table.

        Raises:
            ConfigError: a row of the file has more or fewer figures than there are columns.
        """
        paper: dict[str, Any] = papers.get(table.key, {})
        columns, rows = paper.get("columns", []), paper.get("rows", {})
        for name, values in rows.items():
            if len(values) != len(columns):
                raise ConfigError(f"published {table.key}, row {name!r}: {len(values)} figures of {len(columns)}")
        figures = {
            str(name): {str(column): str(x) for column, x in zip(columns, values, strict=True) if x is not None}
            for name, values in rows.items()
        }
        scale = paper.get("scale", 1.0)
        every = [*table.cells, *figures]
        if not isinstance(scale, dict):
            scale = {name: scale for name in every if name not in BY_CASE}
        by_row = {name: float(scale.get(name, 1.0)) for name in every}
        return cls(table, str(paper.get("source", "")), by_row, figures)

    def lines(self) -> Iterator[tuple[str, str, Mapping[str, Cell | str]]]:
        """Rows as name, by whom, and cells: those of the run each before the published ones."""
        for name in dict.fromkeys([*self.table.cells, *self.published]):
            own = self.table.cells.get(name)
            if own is not None:
                yield name, RUN, {column: cell.times(self.scale[name]) for column, cell in own.items()}
            if name in self.published:
                yield name, PAPER, self.published[name]

    def markdown(self) -> str:
        """The table under its title, its notes, and why cells are not computed."""
        columns = list(dict.fromkeys([*self.table.columns, *(c for row in self.published.values() for c in row)]))
        rows = [[name, by, *(cells.get(column, "") for column in columns)] for name, by, cells in self.lines()]
        title = f"### {self.table.title}" + (f" ({self.source})" if self.source else "")
        parts = [title, markdown_table(("", "by", *columns), rows)]
        reasons: dict[str, list[str]] = {}
        for row, cells in self.table.cells.items():
            for column, cell in cells.items():
                if cell.reason:
                    reasons.setdefault(cell.reason, []).append(f"{row}, {column}")
        parts += [f"- {NOT_COMPUTED.capitalize()}: {_few(of)}: {reason}." for reason, of in reasons.items()]
        parts += [f"- {note}." for note in self.table.notes]
        return "\n\n".join(parts)

    def rows(self) -> Iterator[list[Any]]:
        """A row a number, for CSV."""
        for name, by, cells in self.lines():
            for column, cell in cells.items():
                head = [self.table.key, name, column, by]
                if isinstance(cell, Cell):
                    yield [*head, *(getattr(cell, part) for part in _HEADS[4:-1]), cell.reason]
                else:
                    value, _, sd = cell.partition(" ± ")
                    yield [*head, value, sd or None, *[None] * 6]


def _few(names: Sequence[str]) -> str:
    return "; ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def as_csv(tables: Sequence[Beside]) -> str:
    """All tables as one CSV, a row a number."""
    return csv_text(_HEADS, [row for table in tables for row in table.rows()])


def find(families: Sequence[FamilyEntry], name: str, **wanted: str) -> Cell:
    """The number of a metric among families; ``wanted``: ``family``, ``route``, ``of``, ``extractor``."""
    for family in families:
        if any(getattr(family, part) != wanted[part] for part in ("family", "route") if part in wanted):
            continue
        if family.not_computed:
            return Cell(reason=family.not_computed)
        for metric in family.metrics:
            by = wanted.get("extractor", metric.extractor)
            if (metric.name, metric.of, metric.extractor) == (name, wanted.get("of", ""), by):
                return Cell.of(metric)
    return Cell(reason=ABSENT)
