"""Comparisons of models: paired tests over cases, correction for multiple tests, rank correlation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike

from xgem.metrics.bootstrap import Array, Bootstrap, Estimate, Sampled
from xgem.types import InputError

NOTE_ON_MANY: Final = (
    "Several tests at once: p is adjusted by Holm's method, which keeps the chance of any false finding among all "
    "tests of this table below the level. Tests made elsewhere are not counted."
)


@dataclass(frozen=True)
class PairedTest:
    """A two-sided Wilcoxon signed-rank test of paired cases.

    ``difference`` is the mean of first minus second with its bootstrap interval; ``n_used`` counts the cases that
    differ. ``smallest_p`` is the smallest p possible with that number: above the level, no result can be significant.
    """

    difference: Estimate
    n_used: int
    statistic: float
    p: float
    smallest_p: float
    p_holm: float | None = None


def wilcoxon(first: ArrayLike, second: ArrayLike, *, draws: int = 1000, seed: int = 0) -> PairedTest:
    """Wilcoxon's signed-rank test (1945) of (n,) paired values, one per case; cases without a difference are left out.

    The p-value is exact up to 50 cases without ties (and up to 13 with ties), else by the normal approximation
    (``scipy.stats.wilcoxon``). With five runs in place of cases it cannot fall below 0.0625.

    Raises:
        InputError: the shapes differ, there are fewer than two cases, or a value is not finite.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or a.shape != b.shape or not (np.isfinite(a) & np.isfinite(b)).all():
        raise InputError(f"values of shapes {a.shape} and {b.shape}: expected two of (n,), all finite")
    difference = a - b
    estimate = Bootstrap(len(a), draws=draws, seed=seed).mean(difference).estimate()
    return PairedTest(estimate, *signed_ranks(difference))


@dataclass(frozen=True)
class UnpairedTest:
    """A two-sided Mann-Whitney U test of two independent samples.

    ``difference`` is the mean of the first minus that of the second with its bootstrap interval, both resampled on
    their own; its n counts both. ``superiority`` is the probability that one of the first is higher than one of the
    second, ties counted half: 0.5 without an effect.
    """

    difference: Estimate
    superiority: float
    statistic: float
    p: float


def mann_whitney(first: ArrayLike, second: ArrayLike, *, draws: int = 1000, seed: int = 0) -> UnpairedTest:
    """Mann and Whitney's test (1947) of (n,) and (m,) independent values.

    The p-value is exact where the smaller sample has at most eight values and there are no ties, else by the normal
    approximation (``scipy.stats.mannwhitneyu``).

    Raises:
        InputError: another shape, fewer than two values in one, or a value that is not finite.
    """
    from scipy import stats

    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if a.ndim != 1 or b.ndim != 1 or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError(f"values of shapes {a.shape} and {b.shape}: expected (n,) and (m,), all finite")
    means = [Bootstrap(len(x), draws=draws, seed=seed + k).mean(x) for k, x in enumerate((a, b))]
    difference = Sampled(means[0].value - means[1].value, means[0].draws - means[1].draws, len(a) + len(b))
    test: Any = stats.mannwhitneyu(a, b, alternative="two-sided", method="auto")
    superiority = float(test.statistic) / (len(a) * len(b))
    return UnpairedTest(difference.estimate(), superiority, float(test.statistic), float(test.pvalue))


def signed_ranks(difference: Array) -> tuple[int, float, float, float]:
    """The test of :func:`wilcoxon` on (n,) finite differences: cases that differ, statistic, p, smallest possible p."""
    from scipy import stats

    used = difference[difference != 0]
    if not len(used):
        return 0, 0.0, 1.0, 1.0
    test: Any = stats.wilcoxon(used, alternative="two-sided", method="auto")
    return len(used), float(test.statistic), float(test.pvalue), 2.0 ** (1 - len(used))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values adjusted for multiple tests (Holm 1979): step-down, at most 1, in the given order."""
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or not ((p >= 0) & (p <= 1)).all():
        raise InputError(f"p-values {p.tolist()}: expected a list of numbers in [0, 1]")
    order = np.argsort(p, kind="stable")
    stepped = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1)
    adjusted = np.empty(len(p))
    adjusted[order] = stepped
    return adjusted.tolist()


def rank_correlation(first: ArrayLike, second: ArrayLike) -> tuple[float, float]:
    """Spearman's rank correlation of (n,) values and its two-sided p, for example of class counts and class FID.

    CheXGenBench D (Table 10) ranks the most frequent class and the lowest FID first, so negate the counts.
    """
    from scipy.stats import spearmanr

    result: Any = spearmanr(np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64))
    return float(result.statistic), float(result.pvalue)
