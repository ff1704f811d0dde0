"""Agreement between raters, and proportions with their intervals, as functions of arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import ArrayLike

from xgem.metrics.bootstrap import LEVEL, Array, Estimate
from xgem.types import InputError, NotComputed

IccForm = Literal["ICC(1,1)", "ICC(2,1)", "ICC(3,1)"]
_FEWEST: Final = 2


def icc(scores: ArrayLike, form: IccForm = "ICC(2,1)", *, level: float = LEVEL) -> Estimate:
    """Intraclass correlation of single ratings with its F interval (Shrout & Fleiss 1979, Psychological Bulletin 86).

    Args:
        scores: (n, k) ratings of n targets by k raters, all finite.
        form: ``ICC(1,1)``: each target has its own raters; ``ICC(2,1)``: the raters are a random sample, and a rater
            who scores higher throughout disagrees; ``ICC(3,1)``: these raters alone, and consistency is enough.

    Returns:
        The coefficient, at most 1 and maybe negative, with n targets.

    Raises:
        InputError: another shape, or a value that is not finite. NotComputed: fewer than two targets or raters, or
            no rater's scores differ.
    """
    x = np.asarray(scores, dtype=np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise InputError(f"ratings of shape {x.shape}: expected (targets, raters), all finite")
    n, k = x.shape
    if n < _FEWEST or k < _FEWEST:
        raise NotComputed(f"{n} items rated by {k} readers: expected at least {_FEWEST} of each")
    # Mean squares between targets (b), between raters (j), residual (e), and within targets (w): their table 2
    of_targets, of_raters = x.mean(axis=1), x.mean(axis=0)
    b = k * float(((of_targets - x.mean()) ** 2).sum()) / (n - 1)
    j = n * float(((of_raters - x.mean()) ** 2).sum()) / (k - 1)
    e = float(((x - of_targets[:, None] - of_raters + x.mean()) ** 2).sum()) / ((n - 1) * (k - 1))
    w = float(((x - of_targets[:, None]) ** 2).sum()) / (n * (k - 1))
    if max(b, e) < 1e-12:
        raise NotComputed("each rater gave one and the same score throughout")
    if form == "ICC(2,1)":
        return _icc_2(b, j, e, n, k, level)
    noise, freedom = (w, n * (k - 1)) if form == "ICC(1,1)" else (e, (n - 1) * (k - 1))
    value = (b - noise) / (b + (k - 1) * noise)
    if noise < 1e-12:
        return Estimate(value, value, value, n)
    ratios = [b / noise / quantile for quantile in _f_quantiles(n - 1, freedom, level)]
    low, high = ((ratio - 1) / (ratio + k - 1) for ratio in ratios)
    return Estimate(value, low, high, n)


def _icc_2(b: float, j: float, e: float, n: int, k: int, level: float) -> Estimate:
    """ICC(2,1) of the mean squares, its interval by Satterthwaite's degrees of freedom (their p. 424)."""
    value = (b - e) / (b + (k - 1) * e + k * (j - e) / n)
    if e < 1e-12 and j < 1e-12:
        return Estimate(value, value, value, n)
    # With f = j / e, all multiplied by e squared, so that it is defined without a residual too
    raters, rest = k * value * j, (n * (1 + (k - 1) * value) - k * value) * e
    freedom = (k - 1) * (n - 1) * (raters + rest) ** 2 / ((n - 1) * raters**2 + rest**2)
    below, above = _f_quantiles(n - 1, freedom, level)
    spread = k * j + (k * n - k - n) * e
    low = n * (b - below * e) / (below * spread + n * b)
    high = n * (b - above * e) / (above * spread + n * b)
    return Estimate(value, low, high, n)


def _f_quantiles(first: float, second: float, level: float) -> tuple[float, float]:
    """The upper and lower quantile of F(first, second), which bound a ratio of mean squares from below and above."""
    from scipy.stats import f

    tail = (1 - level) / 2
    return float(f.ppf(1 - tail, first, second)), float(f.ppf(tail, first, second))


def quadratic_kappa(first: ArrayLike, second: ArrayLike, levels: Sequence[int]) -> float:
    """Cohen's kappa with quadratic weights (1968) of two raters' (n,) scores, which are of ``levels``.

    Raises:
        NotComputed: no items in common, or both raters gave one and the same score throughout.
    """
    from sklearn.metrics import cohen_kappa_score

    a, b = np.asarray(first), np.asarray(second)
    if not len(a):
        raise NotComputed("no items in common")
    if len({*a.tolist(), *b.tolist()}) < 2:
        raise NotComputed("both gave one and the same score throughout")
    return float(cohen_kappa_score(a, b, labels=list(levels), weights="quadratic"))


def wilson(successes: int, n: int, *, level: float = LEVEL) -> Estimate:
    """A proportion with Wilson's score interval (1927).

    Raises:
        NotComputed: ``n`` is 0.
    """
    from scipy.stats import binomtest

    if n < 1:
        raise NotComputed("no answers")
    interval: Any = binomtest(successes, n).proportion_ci(level, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), n)


def centred(scores: Array) -> Array:
    """(n, k) ratings less each rater's mean, so that a missing one does not move an item; NaN is missing.

    Rounded to nine decimals: ties of whole scores remain ties.
    """
    counted = np.isfinite(scores)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = np.where(counted, scores, 0.0).sum(axis=0) / counted.sum(axis=0)
    return np.round(scores - means, 9)
