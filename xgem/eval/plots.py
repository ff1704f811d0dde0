"""Plots of metrics, each as the bytes of a PNG file."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xgem.metrics.bootstrap import Estimate
from xgem.types import InputError

_MARKERS = ("o", "x", "^", "+", "s", "v")


def bars(
    groups: Sequence[str],
    series: Mapping[str, Sequence[Estimate | None]],
    *,
    label: str = "",
    counts: Sequence[int] | None = None,
) -> bytes:
    """Bars with intervals: one group per finding or subgroup (with its n), one colour per series; None leaves a gap."""
    figure, axes = _figure(1.2 + 0.35 * len(groups) * max(1, len(series)) + 3, 4)
    width = 0.8 / max(1, len(series))
    for k, (name, estimates) in enumerate(series.items()):
        shown = [(x, estimate) for x, estimate in enumerate(estimates) if estimate is not None]
        values = np.array([estimate.value for _, estimate in shown])
        spread = [[e.value - e.low for _, e in shown], [e.high - e.value for _, e in shown]]
        errors = np.nan_to_num(np.clip(np.array(spread, dtype=np.float64).reshape(2, len(shown)), 0, None))
        places = np.array([x for x, _ in shown]) + (k - (len(series) - 1) / 2) * width
        axes.bar(places, values, width, yerr=errors, label=name)
    names = groups if counts is None else [f"{name}\nn {n}" for name, n in zip(groups, counts, strict=True)]
    axes.set_xticks(
        np.arange(len(groups)),
        names,
        rotation=45 if len(groups) > 4 else 0,
        ha="right" if len(groups) > 4 else "center",
    )
    axes.set_ylabel(label)
    if len(series) > 1:
        figure.legend(loc="outside upper right", ncols=4)  # inside it would hide bars
    return _png(figure)


def histogram(series: Mapping[str, ArrayLike], *, label: str, bins: int = 30) -> bytes:
    """Distributions over the same bins, as proportions."""
    figure, axes = _figure(6, 4)
    values = {name: np.asarray(sample, dtype=np.float64).ravel() for name, sample in series.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(values.values())), bins)
    for name, sample in values.items():
        weights = np.full(len(sample), 1 / max(1, len(sample)))
        axes.hist(sample, edges, weights=weights, alpha=0.5, label=f"{name} (n {len(sample)})")
    axes.set_xlabel(label)
    axes.set_ylabel("proportion")
    axes.legend()
    return _png(figure)


def curves(series: Mapping[str, tuple[ArrayLike, ArrayLike]], *, x: str, y: str, diagonal: bool = False) -> bytes:
    """Lines, such as ROC curves; ``diagonal`` draws the line of chance."""
    figure, axes = _figure(5, 5 if diagonal else 4)
    for name, (first, second) in series.items():
        axes.plot(np.asarray(first), np.asarray(second), label=name)
    if diagonal:
        axes.plot([0, 1], [0, 1], color="grey", linestyle=":")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if len(series) <= 16:
        axes.legend(fontsize="small")
    return _png(figure)


def scatter(series: Mapping[str, NDArray[Any]], *, x: str = "", y: str = "") -> bytes:
    """Points (n, 2) by name, such as a t-SNE map; each name has a marker of its own, told apart without colour."""
    figure, axes = _figure(6, 5)
    for (name, points), marker in zip(series.items(), cycle(_MARKERS)):
        axes.scatter(points[:, 0], points[:, 1], s=14, marker=marker, alpha=0.6, label=f"{name} (n {len(points)})")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.legend()
    return _png(figure)


def _figure(width: float, height: float) -> tuple[Any, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError("plots need the package matplotlib, which is not installed: install xgem[eval]") from error
    figure: Any = Figure(figsize=(min(width, 24), height), layout="constrained")
    return figure, figure.subplots()


def _png(figure: Any) -> bytes:
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=100)
    return stream.getvalue()
