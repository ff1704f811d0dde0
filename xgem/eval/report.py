"""Evaluation results as files: every command writes a JSON record and a report as CSV, Markdown and HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem._version import __version__
from xgem.eval.record import FamilyResult
from xgem.eval.registry import registered, spec
from xgem.eval.schema import FamilyEntry, MetricEntry, NumberEntry, Record, family_entry, record_of
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.types import OutputError
from xgem.utils.files import replacing
from xgem.utils.tables import csv_text, markdown_table

TEMPLATE: Final = "report.html.jinja"
_HEADS: Final = ("metric", "value [95 %]", "n", "reference", "extractor")
_BY_FINDING: Final = ("prompts",)
"""Families whose numbers of single findings are in every table: they are few, and what it is about."""
_IN_SUMMARY: Final = 2
"""Numbers of each family and route in the summary on top of the HTML report."""
_CSV_HEADS: Final = (
    "family", "route", "metric", "of", "extractor", "weights", "number", "value", "low", "high", "n", "p",
    "not_computed",
)  # fmt: skip


def as_json(results: Sequence[FamilyResult], settings: Mapping[str, Any] | None = None) -> str:
    """The record (:mod:`xgem.eval.schema`) of several families; ``settings`` are those that they share."""
    return record_of(results, settings).json_text()


def as_csv(results: Sequence[FamilyResult]) -> str:
    """One row per number: a metric's ``value``, its references, the differences from these (``minus shuffled``)."""
    rows: list[Sequence[Any]] = []
    for family in map(family_entry, results):
        if family.not_computed:
            rows.append([family.family, family.route, *[None] * 10, family.not_computed])
        for metric in family.metrics:
            head = [family.family, family.route, metric.name, metric.of, metric.extractor, metric.weights]
            if metric.value is None:
                rows.append([*head, "value", *[None] * 5, metric.not_computed])
            rows += [[*head, name, x.value, x.low, x.high, x.n, p, None] for name, x, p in _numbers(metric)]
    return csv_text(_CSV_HEADS, rows)


def _numbers(metric: MetricEntry) -> Iterator[tuple[str, NumberEntry, float | None]]:
    """Every number of a metric with its name and, for a difference, its p-value."""
    if metric.value is not None:
        yield "value", metric.value, None
    for name, reference in metric.references.items():
        yield name, reference.value, None
        if reference.difference is not None:
            yield f"minus {name}", reference.difference, reference.p
    if metric.share_of_ceiling is not None:
        yield "share of ceiling", metric.share_of_ceiling, None


def as_markdown(record: Record | Sequence[FamilyResult]) -> str:
    """A table for each family and route, then one line for each reason why metrics were not computed.

    Numbers of single findings are only in the CSV and HTML reports, but for the family ``prompts``.
    """
    families = record.families if isinstance(record, Record) else [family_entry(result) for result in record]
    parts: list[str] = []
    for family in families:
        parts.append(f"### {family.title}")
        shown = [
            metric
            for metric in family.metrics
            if family.family in _BY_FINDING or metric.of.rpartition(", ")[2] not in CHEXPERT_CLASSES
        ]
        rows = [_row(metric) for metric in shown if metric.value is not None]
        if rows:
            parts.append(markdown_table(_HEADS, rows))
        reasons = _reasons(family, shown)
        if reasons:
            parts.append("\n".join(f"- Not computed: {names} ({reason})." for reason, names in reasons.items()))
    return "\n\n".join(parts) + "\n"


def _row(metric: MetricEntry) -> list[Any]:
    n = "" if metric.value is None else metric.value.n
    return [name_of(metric), metric.value, n, "; ".join(references_of(metric)), metric.extractor]


def name_of(metric: MetricEntry) -> str:
    """The title of a metric, with the part of the set that it is of."""
    title = spec(metric.name).label if registered(metric.name) else metric.name
    return f"{title}, {metric.of}" if metric.of else title


def references_of(metric: MetricEntry) -> list[str]:
    """A text for each reference, such as ``shuffled 0.21 [0.20, 0.22], minus shuffled +0.02 [0.01, 0.03], p 0.02``."""
    texts: list[str] = []
    for name, reference in metric.references.items():
        parts = [f"{name} {reference.value}"]
        if reference.difference is not None:
            parts.append(f"minus {name} {reference.difference.signed}")
        if reference.p is not None:
            parts.append(f"p {reference.p:.2g}" + (f" ({reference.test})" if reference.test else ""))
        texts.append(", ".join(parts))
    if metric.share_of_ceiling is not None:
        texts.append(f"share of ceiling {metric.share_of_ceiling}")
    return texts


def _reasons(family: FamilyEntry, metrics: Sequence[MetricEntry]) -> dict[str, str]:
    """The names of metrics that were not computed, by reason."""
    if family.not_computed:
        return {family.not_computed: "all metrics"}
    names: dict[str, list[str]] = {}
    for metric in metrics:
        if metric.value is None:
            text = f"{name_of(metric)} ({metric.extractor})" if metric.extractor else name_of(metric)
            names.setdefault(metric.not_computed, []).append(text)
    return {reason: ", ".join(texts) for reason, texts in names.items()}


def as_html(
    results: Sequence[FamilyResult], settings: Mapping[str, Any] | None = None, *, title: str = "xgem evaluation"
) -> str:
    """The report as one self-contained HTML document: tables, plots and images."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("xgem.eval", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"name_of": name_of, "references_of": references_of, "uri": _uri}
    environment.filters["spec_of"] = lambda metric: spec(metric.name)
    entries = record_of(results, settings)
    return environment.get_template(TEMPLATE).render(
        title=title,
        version=__version__,
        record=entries,
        families=list(zip(entries.families, results, strict=True)),
        reasons=[_reasons(family, family.metrics) for family in entries.families],
        summary=[(number, *row) for number, family in enumerate(entries.families, start=1) for row in _summary(family)],
        glossary=[spec(name) for name in _names(entries.families)],
    )


def _summary(family: FamilyEntry) -> list[tuple[str, MetricEntry]]:
    """The family's first numbers of the whole set that have a direction, with its title."""
    whole = [metric for metric in family.metrics if metric.value is not None and not metric.of]
    directed = [one for one in whole if registered(one.name) and spec(one.name).higher_is_better is not None]
    return [(family.title, metric) for metric in directed[:_IN_SUMMARY]]


def _names(families: Sequence[FamilyEntry]) -> list[str]:
    """The registered names of metrics that have a number, in the order of their first one."""
    names = (metric.name for family in families for metric in family.metrics if metric.value is not None)
    return [name for name in dict.fromkeys(names) if registered(name)]


def _uri(image: bytes | NDArray[np.uint8]) -> str:
    """A PNG file's bytes, or an image (h, w), as a data URI."""
    if not isinstance(image, bytes):
        from PIL import Image

        stream = io.BytesIO()
        Image.fromarray(image).save(stream, format="PNG")
        image = stream.getvalue()
    return "data:image/png;base64," + base64.b64encode(image).decode()


def check_results_folder(out: Path, stem: str, *, overwrite: bool = False) -> None:
    """Refuse a folder that already contains results of this name, unless they may be overwritten.

    Raises:
        OutputError: it contains some, or it is a file.
    """
    if out.exists() and not out.is_dir():
        raise OutputError(f"{out}: is a file, expected a folder; choose another")
    if (out / f"{stem}.json").exists() and not overwrite:
        raise OutputError(f"{out / stem}.json: exists already; choose another folder or pass --overwrite")


def write_results(
    results: Sequence[FamilyResult],
    out: Path,
    stem: str,
    *,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write ``stem.json``, ``.csv``, ``.md``, ``.html`` and the families' own tables to ``out``.

    Args:
        settings: settings that all families share, such as the model and the data.

    Returns:
        the path of the JSON record.

    Raises:
        OutputError: results of an earlier run exist without ``overwrite``, or the folder cannot be written.
    """
    check_results_folder(out, stem, overwrite=overwrite)
    files = {f"{stem}.csv": as_csv(results), f"{stem}.md": as_markdown(results)}
    files[f"{stem}.html"] = as_html(results, settings)
    for result in results:
        prefix = f"{file_stem(result.route)}_" if result.route else ""
        files |= {f"{prefix}{name}": text for name, text in result.tables.items()}
    files[f"{stem}.json"] = as_json(results, settings)  # last: where the record is, all other files are
    for name, text in files.items():
        with replacing(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return out / f"{stem}.json"


def file_stem(route: str) -> str:
    """A route as part of a file name: ``frontal+lateral->report`` becomes ``frontal_lateral_to_report``."""
    return route.replace("->", "_to_").replace("+", "_").replace(", ", "_").replace(" ", "_")
