"""Does a generated picture show what its study says? Classifier scores against labels and against the real picture.

Sources: XGeM 3.5.2 (AUC and F1 of a classifier's scores, ten classes, each only where its label is defined) and
ChexGen, Methods (Pearson's r of scores over N x 14; the text says neither whether all entries are pooled nor what the
"ground truths" are, so r is given by class and pooled, of synthetic scores against those of the paired real pictures).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgem.eval.agreement import auc, average, compare_auc
from xgem.eval.statistics import Array, Bootstrap, Comparison, Sampled, derangements
from xgem.types import InputError


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


def pearson(first: Array, second: Array, bootstrap: Bootstrap) -> Sampled:
    """Pearson's r of two (n,) or (n, classes) arrays, all entries pooled; studies are resampled whole.

    Pooled over classes it is mostly the classes' base rates: scores of unrelated pictures correlate too, so read it
    beside the shuffled control. NaN where one side is constant.
    """
    if first.shape != second.shape or len(first) != bootstrap.n:
        raise InputError(f"scores {first.shape} and {second.shape}: expected two of ({bootstrap.n}, classes)")
    x, y = (one.reshape(len(one), -1) - one.mean() for one in (first, second))
    sums = np.stack([one.sum(axis=1) for one in (x, y, x * x, y * y, x * y)], axis=1)
    sx, sy, sxx, syy, sxy = (bootstrap.weights @ sums).T / (bootstrap.weights.sum(axis=1) * x.shape[1])
    spread = np.sqrt(np.maximum(sxx - sx * sx, 0) * np.maximum(syy - sy * sy, 0))
    scale = max(float(sxx[0] * syy[0]) ** 0.5, 1e-300)
    r = np.divide(sxy - sx * sy, spread, out=np.full(len(spread), np.nan), where=spread > 1e-12 * scale)
    return bootstrap.sampled(np.clip(r, -1, 1))


def compare_pearson(
    real: Array, generated: Array, bootstrap: Bootstrap, *, seed: int = 0, permutations: int = 10
) -> Comparison:
    """:func:`pearson` of real and generated scores, beside generations dealt to other studies."""
    orders = derangements(bootstrap.n, permutations, seed)
    dealt = [pearson(real, generated[order], bootstrap) for order in orders]
    return Comparison(pearson(real, generated, bootstrap), average(dealt))
