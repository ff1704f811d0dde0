"""The table of all metrics, one row each; read by :mod:`xgem.eval.registry`."""

from __future__ import annotations

from collections.abc import Iterator

from xgem.eval.metric_table import generation, judged
from xgem.eval.metric_table.spec import FAMILIES, MetricSpec

__all__ = ["FAMILIES", "MetricSpec", "rows"]


def rows() -> Iterator[MetricSpec]:
    """Every metric that xgem computes."""
    yield from generation.rows()
    yield from judged.rows()
