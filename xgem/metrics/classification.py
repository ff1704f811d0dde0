"""F1, AUROC and accuracy of labels that may be unknown, averaged over classes and class by class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.auc import auc_draws, too_few
from xgem.metrics.bootstrap import Array, Bootstrap, Comparison, Sampled
from xgem.types import InputError, ShapeError

Uncertain = Literal["positive", "negative", "ignore"]


def as_binary(labels: Array, *, uncertain: Uncertain, blank: Literal["negative", "ignore"]) -> Array:
    """CheXpert's labels (1, 0, -1 uncertain, NaN not mentioned) as 1, 0, or NaN where a label is ignored."""
    values = np.asarray(labels, dtype=np.float64)
    known = np.isin(values, (1, 0, -1)) | np.isnan(values)
    if not known.all():
        raise InputError(f"label {values[~known].flat[0]}: expected 1, 0, -1 (uncertain) or NaN (not mentioned)")
    doubt = {"positive": 1.0, "negative": 0.0, "ignore": np.nan}[uncertain]
    result = np.where(values == -1, doubt, values)
    return np.where(np.isnan(values), 0.0 if blank == "negative" else np.nan, result)


def columns(labels: Array, classes: Sequence[str]) -> Array:
    """The columns of ``classes`` among the (n, 14) columns of CheXpert's."""
    return labels[:, [CHEXPERT_CLASSES.index(name) for name in classes]]


@dataclass(frozen=True)
class _Counts:
    """True positives, positives and predicted positives by resampling and class, each (1 + draws, classes)."""

    hits: Array
    support: Array
    predicted: Array

    @property
    def f1(self) -> Array:
        denominator = self.support + self.predicted
        return np.divide(2 * self.hits, denominator, out=np.full(denominator.shape, np.nan), where=denominator > 0)


def compare_f1_scores(truth: Array, predicted: Array, bootstrap: Bootstrap) -> dict[str, Comparison]:
    """Micro, macro and weighted F1 of (n, classes) labels of 1, 0 or NaN, matched and shuffled.

    A pair of labels is left out if either is NaN. Macro and weighted F1 average over the classes with at least one
    positive in ``truth``: elsewhere F1 is undefined. Weighted F1 weights by the number of positives in ``truth``. The
    shuffled control pools all pairs of different studies.

    Returns:
        ``micro_f1``, ``macro_f1`` and ``weighted_f1``, each in [0, 1]; NaN where there is no positive.

    Raises:
        InputError: the shapes differ.
    """
    matched, shuffled = _counts(truth, predicted, bootstrap)
    kept = matched.support[0] > 0
    scores = {"micro_f1": _micro, "macro_f1": _macro, "weighted_f1": _weighted}
    return {
        name: Comparison(bootstrap.sampled(score(matched, kept)), bootstrap.sampled(score(shuffled, kept)))
        for name, score in scores.items()
    }


def compare_f1_by_class(truth: Array, predicted: Array, bootstrap: Bootstrap) -> list[Comparison | None]:
    """F1 of each class; None where ``truth`` has no positive of it."""
    matched, shuffled = _counts(truth, predicted, bootstrap)
    return [
        Comparison(bootstrap.sampled(matched.f1[:, k]), bootstrap.sampled(shuffled.f1[:, k]))
        if matched.support[0, k]
        else None
        for k in range(truth.shape[1])
    ]


def _counts(truth: Array, predicted: Array, bootstrap: Bootstrap) -> tuple[_Counts, _Counts]:
    """Counts over matched pairs of label sets, and over all pairs of different studies."""
    if truth.shape != predicted.shape or truth.ndim != 2 or len(truth) != bootstrap.n:
        raise InputError(
            f"labels of shapes {truth.shape} and {predicted.shape}: expected two of ({bootstrap.n}, classes)"
        )
    w, squares = bootstrap.weights, bootstrap.weights**2
    y_known, p_known = (np.isfinite(one).astype(np.float64) for one in (truth, predicted))
    y, p = np.nan_to_num(truth), np.nan_to_num(predicted)

    def matched_and_shuffled(first: Array, second: Array) -> tuple[Array, Array]:
        product = first * second  # (n, classes)
        # All pairs less the pairs of a study with itself: (1 + draws, classes)
        return w @ product, np.maximum((w @ first) * (w @ second) - squares @ product, 0)

    hits = matched_and_shuffled(y, p)
    support = matched_and_shuffled(y, p_known)
    calls = matched_and_shuffled(y_known, p)
    return _Counts(hits[0], support[0], calls[0]), _Counts(hits[1], support[1], calls[1])


def _micro(counts: _Counts, kept: NDArray[np.bool_]) -> Array:
    total = (counts.support + counts.predicted).sum(axis=1)
    return np.divide(2 * counts.hits.sum(axis=1), total, out=np.full(len(total), np.nan), where=total > 0)


def _macro(counts: _Counts, kept: NDArray[np.bool_]) -> Array:
    """Mean over the kept classes that still have positives in the resampling."""
    return _mean(counts.f1, ((counts.support > 0) & kept).astype(np.float64))


def _weighted(counts: _Counts, kept: NDArray[np.bool_]) -> Array:
    return _mean(counts.f1, counts.support * kept)


def _mean(values: Array, weights: Array) -> Array:
    total = weights.sum(axis=1)
    weighted_sum = (np.where(weights > 0, values, 0.0) * weights).sum(axis=1)
    return np.divide(weighted_sum, total, out=np.full(len(total), np.nan), where=total > 0)


Measures = dict[tuple[str, str], Sampled]
"""By the measure's name and the class that it is of ("" for all classes)."""


def check_scores(scores: Array, labels: Array, classes: Sequence[str]) -> None:
    """Raises ShapeError unless both are (n, classes)."""
    if scores.shape != labels.shape or labels.ndim != 2 or labels.shape[1] != len(classes):
        raise ShapeError(
            f"scores {scores.shape} and labels {labels.shape}: expected both (n, {len(classes)}), one column per class"
        )


def untestable(labels: Array, classes: Sequence[str]) -> dict[str, str]:
    """Classes for which (n, classes) labels allow no AUROC, each with the reason."""
    reasons = {name: too_few(column) for name, column in zip(classes, labels.T, strict=True)}
    return {name: reason for name, reason in reasons.items() if reason}


def confusion(scores: Array, labels: Array, weights: Array, threshold: float | Array = 0.5) -> tuple[Array, ...]:
    """True positives, false positives, false negatives, true negatives: (b, classes) each.

    ``threshold`` may be (classes,); a class is predicted where its score is at least the threshold.
    """
    predicted, known = scores >= threshold, np.isfinite(labels)
    positive = labels == 1
    cells = (predicted & positive, predicted & known & ~positive, ~predicted & positive, ~predicted & known & ~positive)
    return tuple(weights @ cell.astype(np.float64) for cell in cells)


def f1_of(tp: Array, fp: Array, fn: Array) -> Array:
    """F1; 0 where nothing is positive and nothing was predicted, as scikit-learn's ``zero_division=0``."""
    denominator = 2 * tp + fp + fn
    return np.divide(2 * tp, denominator, out=np.zeros_like(tp), where=denominator > 0)


def weighted_mean(values: Array, support: Array) -> Array:
    """Mean of (b, classes) values weighted by ``support`` (b, classes), over the classes that are not NaN: (b,)."""
    weights = np.where(np.isfinite(values), support, 0.0)
    total = weights.sum(axis=1)
    weighted_sum = (weights * np.nan_to_num(values)).sum(axis=1)
    return np.divide(weighted_sum, total, out=np.full(len(values), np.nan), where=total > 0)


def weighted_f1_draws(scores: Array, labels: Array, weights: Array, threshold: float | Array = 0.5) -> Array:
    """F1 averaged over classes, weighted by their number of positives (ChexGen; scikit-learn's ``weighted``), (b,).

    NaN where a resampling has no positive at all.
    """
    tp, fp, fn, _ = confusion(scores, labels, weights, threshold)
    return weighted_mean(f1_of(tp, fp, fn), tp + fn)


def macro_auc_draws(scores: Array, labels: Array, weights: Array) -> Array:
    """AUROC averaged over the classes for which a resampling has positives and negatives, (b,)."""
    by_class = np.stack([auc_draws(s, y, weights) for s, y in zip(scores.T, labels.T, strict=True)], axis=1)
    return weighted_mean(by_class, np.ones_like(by_class))


def classification_measures(
    scores: Array, labels: Array, classes: Sequence[str], bootstrap: Bootstrap, threshold: float = 0.5
) -> Measures:
    """AUROC and F1 per class, micro, macro and weighted (XGeM, Tables 8 to 11), accuracy per class and macro.

    Args:
        scores: (n, classes) probabilities.
        labels: (n, classes) of 1, 0, NaN (unknown).

    Classes that the labels cannot test (:func:`untestable`) enter no number.
    """
    check_scores(scores, labels, classes)
    # Only the classes with positives and negatives
    skipped = untestable(labels, classes)
    columns = [k for k, name in enumerate(classes) if name not in skipped]
    if not columns:
        return {}
    scores, labels = scores[:, columns], labels[:, columns]
    names = [classes[k] for k in columns]
    # By resampling and class, each (1 + draws, classes)
    weights = bootstrap.weights
    tp, fp, fn, tn = confusion(scores, labels, weights, threshold)
    auc = np.stack([auc_draws(s, y, weights) for s, y in zip(scores.T, labels.T, strict=True)], axis=1)
    f1, support, equal = f1_of(tp, fp, fn), tp + fn, np.ones_like(tp)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = (tp + tn) / (tp + fp + fn + tn)
    # Averages over classes, each (1 + draws,)
    draws: dict[tuple[str, str], Array] = {
        ("AUROC macro", ""): weighted_mean(auc, equal),
        ("AUROC micro", ""): auc_draws(scores, labels, weights),
        ("AUROC weighted", ""): weighted_mean(auc, support),
        ("F1 macro", ""): f1.mean(axis=1),
        ("F1 micro", ""): f1_of(tp.sum(axis=1), fp.sum(axis=1), fn.sum(axis=1)),
        ("F1 weighted", ""): weighted_mean(f1, support),
        ("accuracy macro", ""): weighted_mean(accuracy, equal),
    }
    for k, name in enumerate(names):
        draws |= {("AUROC", name): auc[:, k], ("F1", name): f1[:, k], ("accuracy", name): accuracy[:, k]}
    return {key: bootstrap.sampled(values) for key, values in draws.items()}


def brier(scores: Array, labels: Array) -> Array:
    """Squared error of each case's probabilities, mean over its known labels (Brier 1950): (n,), NaN without any.

    A paired test over cases needs a score per case. The AUROC has none: the pairs of all negatives of a rare class
    share its few positives.
    """
    return known_mean((scores - labels) ** 2)


def known_mean(values: Array) -> Array:
    """(n, k) -> (n,): each row's mean over its finite values, NaN without any."""
    known = np.isfinite(values).sum(axis=1)
    return np.divide(np.nansum(values, axis=1), known, out=np.full(len(values), np.nan), where=known > 0)
