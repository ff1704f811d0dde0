"""AUROC, F1 and accuracy on every resampling of the test cases at once; NaN labels have no say.

``weights`` are those of :class:`xgem.eval.statistics.Bootstrap`: (b, n), how often each case counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from xgem.eval.agreement import auc_draws
from xgem.eval.statistics import Array, Bootstrap, Sampled
from xgem.types import ShapeError

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
    error = (scores - labels) ** 2
    known = np.isfinite(error).sum(axis=1)
    return np.divide(np.nansum(error, axis=1), known, out=np.full(len(error), np.nan), where=known > 0)
