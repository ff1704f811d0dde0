"""The registry of metrics: definition, direction and source of each.

:class:`xgem.eval.record.Metric` looks up its name here, and so do ``xgem eval rank``, ``xgem eval metrics``, reports
and model cards. The rows are in :mod:`xgem.eval.metric_table`. Register a metric of your own once, before it is used::

    from xgem.eval.registry import MetricSpec, register

    register(MetricSpec("sharpness", ("fidelity",), True, "Variance of the Laplacian.", ">= 0", "Pech-Pacheco 2000"))
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from xgem.eval.metric_table import FAMILIES, MetricSpec, rows
from xgem.types import InputError
from xgem.utils.tables import markdown_table

__all__ = [
    "FAMILIES",
    "MetricSpec",
    "as_markdown",
    "as_rows",
    "key_of",
    "metrics",
    "register",
    "registered",
    "spec",
    "unregister",
]

_NAME = re.compile(r"[a-z][a-z0-9_+]*")
_METRICS: dict[str, MetricSpec] = {}
_KEYS = {"pearson_r": "pearson"}


def register(metric: MetricSpec) -> MetricSpec:
    """Add a metric, so that families can report it, records can contain it, and ``rank`` knows its direction.

    Families that are not in :data:`FAMILIES` are allowed: they are the user's own.

    Raises:
        InputError: the name belongs to another metric or is not in snake case, or the families or the documentation
            are missing.
    """
    if not _NAME.fullmatch(metric.name):
        raise InputError(f"metric name {metric.name!r}: expected snake case, such as micro_f1_14")
    if not metric.families or not metric.doc.strip():
        raise InputError(f"metric {metric.name!r}: expected at least one family and one line of documentation")
    if _METRICS.get(metric.name, metric) != metric:
        raise InputError(f"metric {metric.name!r} is registered already; choose another name")
    _METRICS[metric.name] = metric
    return metric


def unregister(name: str) -> None:
    """Remove a metric of the user's own; unknown names are ignored."""
    _METRICS.pop(name, None)


def registered(name: str) -> bool:
    """Whether there is a metric of this name."""
    return name in _METRICS


def spec(name: str) -> MetricSpec:
    """The metric of this name.

    Raises:
        InputError: it is not registered.
    """
    try:
        return _METRICS[name]
    except KeyError:
        raise InputError(
            f"metric {name!r} is not registered: add it with xgem.eval.registry.register; `xgem eval metrics` lists all"
        ) from None


def metrics(family: str | None = None) -> Iterator[MetricSpec]:
    """All metrics, or those of one family."""
    return (metric for metric in _METRICS.values() if family is None or family in metric.families)


def key_of(title: str) -> str:
    """The registered name of a metric from a task's title for it: ``AUROC macro`` -> ``auroc_macro``."""
    key = title.strip().lower().replace(" ", "_").replace("-", "_")
    return _KEYS.get(key, key)


def as_rows(family: str | None = None) -> list[dict[str, Any]]:
    """The table as plain data, one dictionary per metric, for JSON and documentation."""
    return [asdict(metric) | {"families": list(metric.families), "title": metric.label} for metric in metrics(family)]


def as_markdown(family: str | None = None) -> str:
    """The table as Markdown, by family, for documentation."""
    better = {True: "higher", False: "lower", None: "-"}
    parts: list[str] = []
    for name in FAMILIES if family is None else (family,):
        cells = [
            (
                f"`{metric.name}`",
                better[metric.higher_is_better],
                metric.range,
                f"{metric.doc} {metric.compat}".strip(),
                metric.source,
            )
            for metric in metrics(name)
        ]
        heads = ("metric", "better", "range", "definition", "source")
        parts.append(f"### {name.capitalize()}\n\n{markdown_table(heads, cells)}")
    return "\n\n".join(parts) + "\n"


for _row in rows():
    register(_row)
