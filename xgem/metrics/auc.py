"""Areas under the ROC curve, with bootstrap intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgem.metrics.agreement import _BLOCK
from xgem.metrics.bootstrap import Array, Bootstrap, Comparison, Sampled, average, derangements
from xgem.types import InputError


def auc(scores: Array, labels: Array, bootstrap: Bootstrap) -> Sampled:
    """Area under the ROC curve of (n,) scores for (n,) labels of 1, 0 or NaN (left out); ties count half.

    Both may be (n, classes): all entries are then pooled (micro average), and studies are resampled whole.
    """
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    if not positives or not negatives:
        raise InputError(f"{positives} positives and {negatives} negatives: an AUC needs both")
    return bootstrap.sampled(auc_draws(scores, labels, bootstrap.weights))


def auc_draws(scores: Array, labels: Array, weights: Array) -> Array:
    """Area under the ROC curve on each of b resamplings, (b,); NaN where one has a single class. Ties count half.

    Args:
        scores, labels: (n,) or (n, classes); all columns of the latter are pooled (micro average).
        weights: (b, n).
    """
    known = np.isfinite(labels)
    cases, values, truth = np.nonzero(known)[0], scores[known], labels[known]
    result = np.full(len(weights), np.nan)
    if not len(values):
        return result
    order = np.argsort(values, kind="stable")
    cases, values, truth = cases[order], values[order], truth[order]
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    block = max(1, _BLOCK // len(values))
    for first in range(0, len(weights), block):
        own = weights[first : first + block, cases]
        positive = np.add.reduceat(own * truth, starts, axis=1)
        negative = np.add.reduceat(own * (1 - truth), starts, axis=1)
        wins = (positive * (negative.cumsum(axis=1) - negative / 2)).sum(axis=1)
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        result[first : first + block] = np.divide(wins, pairs, out=np.full(len(own), np.nan), where=pairs > 0)
    return result


def compare_auc(
    scores: Array, labels: Array, bootstrap: Bootstrap, *, seed: int = 0, permutations: int = 10
) -> Comparison:
    """AUC beside that of outputs dealt to other studies (mean over derangements of the annotated studies)."""
    known = np.flatnonzero(np.isfinite(labels).reshape(len(labels), -1).any(axis=1))
    dealt: list[Sampled] = []
    for order in derangements(len(known), permutations, seed):
        moved = scores.copy()
        moved[known] = scores[known[order]]
        dealt.append(auc(moved, labels, bootstrap))
    return Comparison(auc(scores, labels, bootstrap), average(dealt))


@dataclass(frozen=True)
class AucScores:
    """``by_class``: an AUC, or the reason why there is none; the averages are over the classes that have one."""

    by_class: tuple[Comparison | str, ...]
    micro: Comparison
    macro: Comparison
    weighted: Comparison


def compare_auc_scores(
    scores: Array, labels: Array, bootstrap: Bootstrap, *, seed: int = 0, permutations: int = 10
) -> AucScores:
    """AUC of (n, classes) scores for labels of 1, 0 or NaN (left out), matched and shuffled.

    Micro pools the entries of the classes that have an AUC by themselves; weighted weighs by the number of positives.

    Raises:
        InputError: shapes that do not fit, or no class has both positives and negatives.
    """
    if scores.shape != labels.shape or scores.ndim != 2:
        raise InputError(f"scores {scores.shape} and labels {labels.shape}: expected two of (n, classes)")
    options = {"seed": seed, "permutations": permutations}
    found: list[Comparison | str] = []
    for one, label in zip(scores.T, labels.T, strict=True):
        try:
            found.append(compare_auc(one, label, bootstrap, **options))
        except InputError as error:
            found.append(str(error))
    kept = [k for k, one in enumerate(found) if isinstance(one, Comparison)]
    parts = [one for one in found if isinstance(one, Comparison)]
    if not parts:
        raise InputError(f"{labels.shape[1]} classes, none with both positives and negatives: no AUC")
    support = bootstrap.weights @ (labels[:, kept] == 1).astype(np.float64)

    def averaged(mean: Any) -> Comparison:
        return Comparison(mean([one.matched for one in parts]), mean([one.shuffled for one in parts]))

    return AucScores(
        tuple(found),
        compare_auc(scores[:, kept], labels[:, kept], bootstrap, **options),
        averaged(average),
        averaged(lambda some: _weighted(some, support)),
    )


def auc_scores(scores: Array, labels: Array, bootstrap: Bootstrap) -> dict[str, Sampled]:
    """Micro, macro and weighted AUC without the shuffled control, as :func:`compare_auc_scores`: the ceiling."""
    kept = [k for k, label in enumerate(labels.T) if {0.0, 1.0} <= set(label)]
    parts = [auc(scores[:, k], labels[:, k], bootstrap) for k in kept]
    support = bootstrap.weights @ (labels[:, kept] == 1).astype(np.float64)
    return {
        "micro": auc(scores[:, kept], labels[:, kept], bootstrap),
        "macro": average(parts),
        "weighted": _weighted(parts, support),
    }


def _weighted(parts: Sequence[Sampled], support: Array) -> Sampled:
    values = np.stack([np.r_[one.value, one.draws] for one in parts], axis=1)
    weights = np.where(np.isfinite(values), support, 0.0)
    total = weights.sum(axis=1)
    top = (np.nan_to_num(values) * weights).sum(axis=1)
    mean = np.divide(top, total, out=np.full(len(total), np.nan), where=total > 0)
    return Sampled(float(mean[0]), mean[1:], parts[0].n)
