"""F1 of labels that may be unknown, matched and shuffled, over all classes and class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.auc import auc_draws
from xgem.metrics.bootstrap import Array, Bootstrap, Comparison, Sampled
from xgem.types import InputError, ShapeError

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


Measures = dict[tuple[str, str], Sampled]
"""By the measure's name and what it is of ("" for all)."""


def check_scores(scores: Array, labels: Array, classes: Sequence[str]) -> None:
    """Raises ShapeError unless both are (n, classes)."""
    if scores.shape != labels.shape or labels.ndim != 2 or labels.shape[1] != len(classes):
        raise ShapeError(
            f"scores {scores.shape} and labels {labels.shape}: expected both (n, {len(classes)}), one column a class"
        )


def untestable(labels: Array, classes: Sequence[str]) -> dict[str, str]:
    """Classes that (n, classes) labels cannot test, each with the reason."""
    counts = {name: (int((y == 1).sum()), int((y == 0).sum())) for name, y in zip(classes, labels.T, strict=True)}
    return {
        name: f"{positives} positives and {negatives} negatives: an AUROC needs both"
        for name, (positives, negatives) in counts.items()
        if not positives or not negatives
    }


def confusion(scores: Array, labels: Array, weights: Array, threshold: float | Array = 0.5) -> tuple[Array, ...]:
    """True positives, false positives, false negatives, true negatives: (b, classes) each.

    ``threshold`` may be (classes,); a class is found where its score is at least that.
    """
    found, known = scores >= threshold, np.isfinite(labels)
    true = labels == 1
    cells = (found & true, found & known & ~true, ~found & true, ~found & known & ~true)
    return tuple(weights @ cell.astype(np.float64) for cell in cells)


def f1_of(tp: Array, fp: Array, fn: Array) -> Array:
    """F1; 0 where nothing is there and nothing was found, as scikit-learn's ``zero_division=0``."""
    bottom = 2 * tp + fp + fn
    return np.divide(2 * tp, bottom, out=np.zeros_like(tp), where=bottom > 0)


def weighted_mean(values: Array, support: Array) -> Array:
    """(b, classes) averaged with (b, classes) weights, over the classes that are defined: (b,)."""
    weights = np.where(np.isfinite(values), support, 0.0)
    total = weights.sum(axis=1)
    top = (weights * np.nan_to_num(values)).sum(axis=1)
    return np.divide(top, total, out=np.full(len(values), np.nan), where=total > 0)


def weighted_f1_draws(scores: Array, labels: Array, weights: Array, threshold: float | Array = 0.5) -> Array:
    """F1 averaged over classes by their number of positives (ChexGen; scikit-learn's ``weighted``), (b,).

    NaN where a resampling has no positive at all.
    """
    tp, fp, fn, _ = confusion(scores, labels, weights, threshold)
    return weighted_mean(f1_of(tp, fp, fn), tp + fn)


def macro_auc_draws(scores: Array, labels: Array, weights: Array) -> Array:
    """AUROC averaged over the classes that a resampling defines, (b,)."""
    each = np.stack([auc_draws(s, y, weights) for s, y in zip(scores.T, labels.T, strict=True)], axis=1)
    return weighted_mean(each, np.ones_like(each))


def classification_measures(
    scores: Array, labels: Array, classes: Sequence[str], bootstrap: Bootstrap, threshold: float = 0.5
) -> Measures:
    """AUROC and F1 per class, micro, macro and weighted (XGeM, Tables 8 to 11), accuracy per class and macro.

    Args:
        scores: (n, classes) probabilities.
        labels: (n, classes) of 1, 0, NaN (no say).

    Classes that the labels cannot test (:func:`untestable`) have no part in any number.
    """
    check_scores(scores, labels, classes)
    out = untestable(labels, classes)
    columns = [k for k, name in enumerate(classes) if name not in out]
    if not columns:
        return {}
    scores, labels = scores[:, columns], labels[:, columns]
    names = [classes[k] for k in columns]
    weights = bootstrap.weights
    tp, fp, fn, tn = confusion(scores, labels, weights, threshold)
    auc = np.stack([auc_draws(s, y, weights) for s, y in zip(scores.T, labels.T, strict=True)], axis=1)
    f1, support, one = f1_of(tp, fp, fn), tp + fn, np.ones_like(tp)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = (tp + tn) / (tp + fp + fn + tn)
    found: dict[tuple[str, str], Array] = {
        ("AUROC macro", ""): weighted_mean(auc, one),
        ("AUROC micro", ""): auc_draws(scores, labels, weights),
        ("AUROC weighted", ""): weighted_mean(auc, support),
        ("F1 macro", ""): f1.mean(axis=1),
        ("F1 micro", ""): f1_of(tp.sum(axis=1), fp.sum(axis=1), fn.sum(axis=1)),
        ("F1 weighted", ""): weighted_mean(f1, support),
        ("accuracy macro", ""): weighted_mean(accuracy, one),
    }
    for k, name in enumerate(names):
        found |= {("AUROC", name): auc[:, k], ("F1", name): f1[:, k], ("accuracy", name): accuracy[:, k]}
    return {key: bootstrap.sampled(values) for key, values in found.items()}


def brier(scores: Array, labels: Array) -> Array:
    """Squared error of the probabilities of each case, mean over its known labels (Brier 1950): (n,), NaN without any.

    A score that each case has by itself, as a test over cases needs it. A case's share in the AUROC is none: all
    negatives of a rare class stand or fall with its few positives.
    """
    return known_mean((scores - labels) ** 2)


def known_mean(values: Array) -> Array:
    """(n, k) -> (n,): each row's mean over its finite values, NaN without any."""
    known = np.isfinite(values).sum(axis=1)
    return np.divide(np.nansum(values, axis=1), known, out=np.full(len(values), np.nan), where=known > 0)
