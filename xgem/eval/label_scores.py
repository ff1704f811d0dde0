"""F1 of labels that may be unknown, matched and shuffled, over all classes and class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xgem.eval.statistics import Array, Bootstrap, Comparison
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.types import InputError

Uncertain = Literal["positive", "negative", "ignore"]


def as_binary(labels: Array, *, uncertain: Uncertain, blank: Literal["negative", "ignore"]) -> Array:
    """CheXpert's labels (1, 0, -1 uncertain, NaN not mentioned) as 1, 0, or NaN where a label is left out."""
    wanted = np.asarray(labels, dtype=np.float64)
    known = np.isin(wanted, (1, 0, -1)) | np.isnan(wanted)
    if not known.all():
        raise InputError(f"label {wanted[~known].flat[0]}: expected 1, 0, -1 (uncertain) or NaN (not mentioned)")
    doubt = {"positive": 1.0, "negative": 0.0, "ignore": np.nan}[uncertain]
    found = np.where(wanted == -1, doubt, wanted)
    return np.where(np.isnan(wanted), 0.0 if blank == "negative" else np.nan, found)


def columns(labels: Array, classes: Sequence[str]) -> Array:
    """Those of the (n, 14) columns of CheXpert's classes."""
    return labels[:, [CHEXPERT_CLASSES.index(name) for name in classes]]


@dataclass(frozen=True)
class _Counts:
    """By resampling and class, each (1 + draws, classes)."""

    hits: Array
    support: Array
    called: Array

    @property
    def f1(self) -> Array:
        bottom = self.support + self.called
        return np.divide(2 * self.hits, bottom, out=np.full(bottom.shape, np.nan), where=bottom > 0)


def compare_f1_scores(truth: Array, predicted: Array, bootstrap: Bootstrap) -> dict[str, Comparison]:
    """Micro, macro and weighted F1 of (n, classes) labels of 1, 0 or NaN, matched and shuffled.

    A pair of labels of which either is NaN is left out. Macro and weighted average over the classes that ``truth``
    affirms at least once: elsewhere F1 is not defined. Weighted weighs by the number of positives in ``truth``. The
    shuffled control pools all pairs of different studies.

    Returns:
        ``micro_f1``, ``macro_f1`` and ``weighted_f1``, each in [0, 1]; NaN where nothing is affirmed.

    Raises:
        InputError: shapes that do not fit.
    """
    own, crossed = _counts(truth, predicted, bootstrap)
    kept = own.support[0] > 0
    scores = {"micro_f1": _micro, "macro_f1": _macro, "weighted_f1": _weighted}
    return {
        name: Comparison(bootstrap.sampled(score(own, kept)), bootstrap.sampled(score(crossed, kept)))
        for name, score in scores.items()
    }


def compare_f1_by_class(truth: Array, predicted: Array, bootstrap: Bootstrap) -> list[Comparison | None]:
    """F1 of each class; None where ``truth`` affirms it nowhere."""
    own, crossed = _counts(truth, predicted, bootstrap)
    return [
        Comparison(bootstrap.sampled(own.f1[:, k]), bootstrap.sampled(crossed.f1[:, k])) if own.support[0, k] else None
        for k in range(truth.shape[1])
    ]


def _counts(truth: Array, predicted: Array, bootstrap: Bootstrap) -> tuple[_Counts, _Counts]:
    """Of a study's own pair of label sets, and of all pairs of different studies."""
    if truth.shape != predicted.shape or truth.ndim != 2 or len(truth) != bootstrap.n:
        raise InputError(
            f"labels of shapes {truth.shape} and {predicted.shape}: expected two of ({bootstrap.n}, classes)"
        )
    w, squares = bootstrap.weights, bootstrap.weights**2
    y_known, p_known = (np.isfinite(one).astype(np.float64) for one in (truth, predicted))
    y, p = np.nan_to_num(truth), np.nan_to_num(predicted)

    def both(first: Array, second: Array) -> tuple[Array, Array]:
        product = first * second
        return w @ product, np.maximum((w @ first) * (w @ second) - squares @ product, 0)

    hits, support, called = both(y, p), both(y, p_known), both(y_known, p)
    return _Counts(hits[0], support[0], called[0]), _Counts(hits[1], support[1], called[1])


def _micro(counts: _Counts, kept: NDArray[np.bool_]) -> Array:
    bottom = (counts.support + counts.called).sum(axis=1)
    return np.divide(2 * counts.hits.sum(axis=1), bottom, out=np.full(len(bottom), np.nan), where=bottom > 0)


def _macro(counts: _Counts, kept: NDArray[np.bool_]) -> Array:
    """Mean over the kept classes; in a resampling that lost a class's positives, over those left."""
    return _mean(counts.f1, ((counts.support > 0) & kept).astype(np.float64))


def _weighted(counts: _Counts, kept: NDArray[np.bool_]) -> Array:
    return _mean(counts.f1, counts.support * kept)


def _mean(values: Array, weights: Array) -> Array:
    total = weights.sum(axis=1)
    top = (np.where(weights > 0, values, 0.0) * weights).sum(axis=1)
    return np.divide(top, total, out=np.full(len(total), np.nan), where=total > 0)
