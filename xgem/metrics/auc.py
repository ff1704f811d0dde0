"""Areas under the ROC curve, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from xgem.metrics.bootstrap import Array, Bootstrap, Comparison, Sampled, average, derangements
from xgem.types import InputError

FEWEST: Final = 5
"""Positives and negatives that the AUC of a class needs: from fewer, its interval says less than it seems to."""
_BLOCK = 4_000_000  # weights held at once, so that many resamplings of many scores fit into memory


def auc(scores: Array, labels: Array, bootstrap: Bootstrap) -> Sampled:
    """Area under the ROC curve of (n,) scores for (n,) labels of 1, 0 or NaN (ignored); ties count half.

    Both may be (n, classes): all entries are then pooled (micro average), and whole studies are resampled.
    """
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    if not positives or not negatives:
        raise InputError(f"{positives} positives and {negatives} negatives: an AUC needs both")
    return bootstrap.sampled(auc_draws(scores, labels, bootstrap.weights))


def too_few(labels: Array) -> str:
    """Why (n,) labels of 1, 0 or NaN (ignored) give no AUC; empty where they do."""
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    if min(positives, negatives) >= FEWEST:
        return ""
    return f"{positives} positives and {negatives} negatives: an AUROC needs at least {FEWEST} of each"


def auc_draws(scores: Array, labels: Array, weights: Array) -> Array:
    """Area under the ROC curve on each of b resamplings, (b,); NaN where one lacks positives or negatives.

    Ties count half.

    Args:
        scores, labels: (n,) or (n, classes); with the latter all columns are pooled (micro average).
        weights: (b, n), how often each study was drawn.
    """
    known = np.isfinite(labels)
    cases, values, truth = np.nonzero(known)[0], scores[known], labels[known]
    result = np.full(len(weights), np.nan)
    if not len(values):
        return result
    # Sort once, and group equal scores: ``starts`` are the first positions of the tie groups
    order = np.argsort(values, kind="stable")
    cases, values, truth = cases[order], values[order], truth[order]
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    # Mann-Whitney's U: each positive wins against the negatives below it, and half against those it ties with
    block = max(1, _BLOCK // len(values))
    for first in range(0, len(weights), block):
        drawn = weights[first : first + block, cases]  # (block, scores)
        positive = np.add.reduceat(drawn * truth, starts, axis=1)  # (block, tie groups)
        negative = np.add.reduceat(drawn * (1 - truth), starts, axis=1)
        wins = (positive * (negative.cumsum(axis=1) - negative / 2)).sum(axis=1)
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        result[first : first + block] = np.divide(wins, pairs, out=np.full(len(drawn), np.nan), where=pairs > 0)
    return result


def compare_auc(
    scores: Array, labels: Array, bootstrap: Bootstrap, *, seed: int = 0, permutations: int = 10
) -> Comparison:
    """AUC, and that of outputs randomly reassigned across the annotated studies (mean over derangements)."""
    known = np.flatnonzero(np.isfinite(labels).reshape(len(labels), -1).any(axis=1))
    shuffled: list[Sampled] = []
    for order in derangements(len(known), permutations, seed):
        reassigned = scores.copy()
        reassigned[known] = scores[known[order]]
        shuffled.append(auc(reassigned, labels, bootstrap))
    return Comparison(auc(scores, labels, bootstrap), average(shuffled))


@dataclass(frozen=True)
class AucScores:
    """``by_class``: an AUC, or the reason why there is none; averages are taken over the classes that have one.

    A class needs :data:`FEWEST` positives and negatives.
    """

    by_class: tuple[Comparison | str, ...]
    micro: Comparison
    macro: Comparison
    weighted: Comparison


def compare_auc_scores(
    scores: Array, labels: Array, bootstrap: Bootstrap, *, seed: int = 0, permutations: int = 10
) -> AucScores:
    """AUC of (n, classes) scores for labels of 1, 0 or NaN (ignored), matched and shuffled.

    Micro pools the entries of the classes that have an AUC of their own; weighted weights by the number of positives.

    Raises:
        InputError: the shapes differ, or no class has enough positives and negatives.
    """
    if scores.shape != labels.shape or scores.ndim != 2:
        raise InputError(f"scores {scores.shape} and labels {labels.shape}: expected two of (n, classes)")
    options = {"seed": seed, "permutations": permutations}
    # Each class by itself
    by_class: list[Comparison | str] = []
    for class_scores, class_labels in zip(scores.T, labels.T, strict=True):
        reason = too_few(class_labels)
        by_class.append(reason or compare_auc(class_scores, class_labels, bootstrap, **options))
    # Averages over the classes that have an AUC
    kept = [k for k, result in enumerate(by_class) if isinstance(result, Comparison)]
    parts = [result for result in by_class if isinstance(result, Comparison)]
    if not parts:
        raise InputError(f"{labels.shape[1]} classes, none with {FEWEST} positives and negatives: no AUC")
    support = bootstrap.weights @ (labels[:, kept] == 1).astype(np.float64)  # (1 + draws, kept classes)

    def averaged(mean: Any) -> Comparison:
        return Comparison(mean([one.matched for one in parts]), mean([one.shuffled for one in parts]))

    return AucScores(
        tuple(by_class),
        compare_auc(scores[:, kept], labels[:, kept], bootstrap, **options),
        averaged(average),
        averaged(lambda some: _weighted(some, support)),
    )


def auc_scores(scores: Array, labels: Array, bootstrap: Bootstrap) -> dict[str, Sampled]:
    """Micro, macro and weighted AUC as :func:`compare_auc_scores`, without the shuffled control: for ceilings."""
    kept = [k for k, label in enumerate(labels.T) if not too_few(label)]
    parts = [auc(scores[:, k], labels[:, k], bootstrap) for k in kept]
    support = bootstrap.weights @ (labels[:, kept] == 1).astype(np.float64)
    return {
        "micro": auc(scores[:, kept], labels[:, kept], bootstrap),
        "macro": average(parts),
        "weighted": _weighted(parts, support),
    }


def _weighted(parts: Sequence[Sampled], support: Array) -> Sampled:
    values = np.stack([np.r_[one.value, one.draws] for one in parts], axis=1)  # (1 + draws, classes)
    weights = np.where(np.isfinite(values), support, 0.0)
    total = weights.sum(axis=1)
    weighted_sum = (np.nan_to_num(values) * weights).sum(axis=1)
    mean = np.divide(weighted_sum, total, out=np.full(len(total), np.nan), where=total > 0)
    return Sampled(float(mean[0]), mean[1:], parts[0].n)
