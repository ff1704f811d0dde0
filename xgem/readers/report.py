"""The report of a reader study: tables as CSV, JSON, Markdown and HTML, with figures."""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from xgem._version import __version__
from xgem.eval.plots import bars
from xgem.eval.report import check_results_folder
from xgem.metrics.bootstrap import Estimate
from xgem.metrics.raters import wilson
from xgem.readers.analysis import ALL, Settings, Table, analyse
from xgem.readers.plan import StudyPlan
from xgem.readers.results import Reading, as_csv, readings_of
from xgem.readers.study import Study
from xgem.readers.task import REAL, Task
from xgem.utils.files import replacing
from xgem.utils.tables import csv_text, markdown_table

STEM: Final = "report"
_TEMPLATES: Final = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Figure:
    """A figure: the name of its file, what it shows, and the bytes of the PNG file."""

    name: str
    caption: str
    png: bytes


@dataclass(frozen=True)
class Report:
    """What a study says so far."""

    study: Study
    readings: list[Reading]
    tables: list[Table]
    settings: Settings

    @cached_property
    def figures(self) -> list[Figure]:
        """Means, then the distribution of each task's scores; of what has answers."""
        plan = self.study.plan
        return [*_means(plan, self.tables[0]), *_distributions(plan, self.readings)]

    @property
    def missing(self) -> Counter[str]:
        """Answers that are missing, by reader."""
        return Counter(one.reader for one in self.readings if one.score is None)

    @property
    def state(self) -> str:
        """A line: how many answers there are, and who lacks how many."""
        total, missing = len(self.readings), self.missing
        if not missing:
            return f"All {total} answers of {len(self.study.plan.readers)} readers."
        by_reader = ", ".join(f"{name} {count}" for name, count in sorted(missing.items()))
        return f"Unfinished: {missing.total()} of {total} answers are missing ({by_reader})."

    def table(self, name: str) -> list[dict[str, Any]]:
        """The rows of one table."""
        return next(table.rows for table in self.tables if table.name == name)


def report_of(study: Study, settings: Settings | None = None) -> Report:
    """Everything that can be said of the answers so far."""
    how, readings = settings or Settings(), readings_of(study)
    return Report(study, readings, analyse(study.plan, readings, how), how)


def _means(plan: StudyPlan, scores: Table) -> list[Figure]:
    """Means by task and arm (XGeM, Figure 6), a figure for each scale; published means beside them."""
    found: list[Figure] = []
    scales = list(dict.fromkeys((task.low, task.high) for task in plan.all_tasks))
    for low, high in scales:
        tasks = [task for task in plan.all_tasks if (task.low, task.high) == (low, high)]
        series: dict[str, list[Estimate | None]] = {}
        for arm in plan.arms:
            values = [_estimate(scores, task, arm) for task in tasks]
            if any(values):
                series[arm] = values
        if not series:
            continue
        for of in dict.fromkeys(one.of for task in tasks for kind in _KINDS for one in _reported(plan, task, kind)):
            series[f"{of} (published)"] = [_published(plan, task, of) for task in tasks]
        name = "scores.png" if len(scales) == 1 else f"scores_{low}_to_{high}.png"
        png = bars([task.name for task in tasks], series, label=f"mean score, {low} to {high}")
        found.append(
            Figure(name, f"Mean scores from {low} to {high} with 95 % intervals; published ones without.", png)
        )
    return found


_KINDS: Final = (REAL, "synthetic")


def _reported(plan: StudyPlan, task: Task, kind: str) -> Sequence[Any]:
    return plan.published.reported(task.name, kind) if plan.published else ()


def _published(plan: StudyPlan, task: Task, of: str) -> Estimate | None:
    found = [one for kind in _KINDS for one in _reported(plan, task, kind) if one.of == of]
    return Estimate(found[0].mean, math.nan, math.nan, 0) if found else None


def _estimate(scores: Table, task: Task, arm: str) -> Estimate | None:
    for row in scores.rows:
        if (row["task"], row["arm"], row["reader"]) == (task.name, arm, ALL) and row.get("value") is not None:
            return Estimate(row["value"], row["low"], row["high"], row["n"])
    return None


def _distributions(plan: StudyPlan, readings: Sequence[Reading]) -> list[Figure]:
    """How often each score was given (ChexGen, Figure 2c), a figure for each task with answers."""
    found: list[Figure] = []
    for task in plan.all_tasks:
        series: dict[str, list[Estimate | None]] = {}
        for arm in task.arms:
            given = Counter(one.score for one in readings if (one.task, one.arm) == (task.name, arm))
            total = sum(given[score] for score in task.scores)
            if total:
                series[f"{arm} (n {total})"] = [wilson(given[score], total) for score in task.scores]
        if series:
            png = bars([str(score) for score in task.scores], series, label="share of answers")
            caption = f"{task.title}: share of answers with each score, with Wilson's 95 % intervals."
            found.append(Figure(f"distribution_{task.name.replace(' ', '_')}.png", caption, png))
    return found


def as_json(report: Report) -> str:
    """The study, its state and all tables as JSON; what is not a number is null."""
    study = report.study
    record = {
        "xgem": __version__,
        "study": {"id": study.id, "picture_size": study.size, "plan": study.plan.model_dump(mode="json")},
        "state": report.state,
        "missing": dict(sorted(report.missing.items())),
        "settings": {"seed": report.settings.seed, "bootstrap": report.settings.draws},
        "tables": {table.name: [_plain(table, row) for row in table.rows] for table in report.tables},
        "notes": {table.name: table.note for table in report.tables},
    }
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _plain(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with all its columns."""
    cells = {name: row.get(name) for name in table.columns}
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in cells.items()}


def as_markdown(report: Report) -> str:
    """The state and the tables that have rows, numbers to three decimals."""
    parts = [f"## {report.study.plan.name}", report.state]
    for table in report.tables:
        if table.rows:
            parts += [f"### {table.title}", markdown_table(*shown(table)), table.note]
    return "\n\n".join(parts) + "\n"


def shown(table: Table) -> tuple[list[str], list[list[str]]]:
    """Heads and cells for people; columns without anything in them are left out."""
    rows = [_plain(table, row) for row in table.rows]
    columns = [name for name in table.columns if any(row[name] not in (None, "") for row in rows)]
    return [name.replace("_", " ") for name in columns], [[_cell(name, row[name]) for name in columns] for row in rows]


def _cell(column: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    if column in ("p", "p_holm"):
        return f"{value:.2g}"
    return f"{value:.1f}" if column in ("median", "quartile_1", "quartile_3", "sum") else f"{value:.3f}"


def as_html(report: Report) -> str:
    """The report as one self-contained page."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("report.html.jinja").render(
        report=report,
        plan=report.study.plan,
        version=__version__,
        tables=[(table, *shown(table)) for table in report.tables if table.rows],
        figures=[(one.caption, base64.b64encode(one.png).decode()) for one in report.figures],
    )


def write_report(report: Report, out: Path, *, overwrite: bool = False) -> Path:
    """Write ``report.json``, ``.md``, ``.html``, a CSV a table, and the figures; returns the path of the JSON file.

    Raises:
        OutputError: a report is there without ``overwrite``, or the folder cannot be written.
    """
    check_results_folder(out, STEM, overwrite=overwrite)
    texts = {f"{table.name}.csv": csv_text(table.columns, table.rows) for table in report.tables if table.rows}
    texts |= {f"{STEM}.md": as_markdown(report), f"{STEM}.html": as_html(report)}
    texts[f"{STEM}.json"] = as_json(report)  # last: where it is, all others are
    files = {one.name: one.png for one in report.figures} | {name: text.encode() for name, text in texts.items()}
    for name, data in files.items():
        with replacing(out / name) as partial:
            partial.write_bytes(data)
    return out / f"{STEM}.json"


def write_answers(report: Report, file: Path) -> None:
    """Write all answers with arms and cases as CSV.

    Raises:
        OutputError: the file cannot be written.
    """
    with replacing(file) as partial:
        partial.write_text(as_csv(report.readings), encoding="utf-8")
