"""Correlation coefficients, with bootstrap intervals."""

from __future__ import annotations

import numpy as np

from xgem.metrics.bootstrap import Array, Bootstrap, Comparison, Sampled, average, derangements
from xgem.types import InputError


def correlation(first: Array, second: Array, bootstrap: Bootstrap, *, ranks: bool = False) -> Sampled:
    """Pearson's r of two (n,) arrays, or with ``ranks`` Spearman's; NaN where one is constant."""
    w = bootstrap.weights  # (draws, n)
    x, y = (_weighted_ranks(values, w) if ranks else values for values in (first, second))
    share = w / bootstrap.n
    x, y = x - (share * x).sum(axis=1, keepdims=True), y - (share * y).sum(axis=1, keepdims=True)
    spread = np.sqrt((share * x**2).sum(axis=1) * (share * y**2).sum(axis=1))
    covariance = (share * x * y).sum(axis=1)
    return bootstrap.sampled(np.divide(covariance, spread, out=np.full(len(w), np.nan), where=spread > 1e-12))


def _weighted_ranks(values: Array, weights: Array) -> Array:
    """(draws, n) ranks within each resampling; ties get their mean rank."""
    below = (values[None] < values[:, None]) + 0.5 * (values[None] == values[:, None])
    return weights @ below.T


def compare_correlation(
    asked: Array, found: Array, bootstrap: Bootstrap, *, ranks: bool = False, seed: int = 0, permutations: int = 10
) -> Comparison:
    """:func:`correlation`, and that of outputs randomly reassigned across studies (mean over derangements)."""
    orders = derangements(bootstrap.n, permutations, seed)
    shuffled = [correlation(asked, found[order], bootstrap, ranks=ranks) for order in orders]
    return Comparison(correlation(asked, found, bootstrap, ranks=ranks), average(shuffled))


def pearson(first: Array, second: Array, bootstrap: Bootstrap) -> Sampled:
    """Pearson's r of two (n,) or (n, classes) arrays, all entries pooled; whole studies are resampled.

    Pooled over classes it mostly reflects the classes' base rates: scores of unrelated images correlate too, so read
    it together with the shuffled control. NaN where one side is constant.
    """
    if first.shape != second.shape or len(first) != bootstrap.n:
        raise InputError(f"scores {first.shape} and {second.shape}: expected two of ({bootstrap.n}, classes)")
    x, y = (values.reshape(len(values), -1) - values.mean() for values in (first, second))  # (n, classes)
    sums = np.stack([terms.sum(axis=1) for terms in (x, y, x * x, y * y, x * y)], axis=1)  # (n, 5)
    sx, sy, sxx, syy, sxy = (bootstrap.weights @ sums).T / (bootstrap.weights.sum(axis=1) * x.shape[1])
    spread = np.sqrt(np.maximum(sxx - sx * sx, 0) * np.maximum(syy - sy * sy, 0))
    scale = max(float(sxx[0] * syy[0]) ** 0.5, 1e-300)
    r = np.divide(sxy - sx * sy, spread, out=np.full(len(spread), np.nan), where=spread > 1e-12 * scale)
    return bootstrap.sampled(np.clip(r, -1, 1))


def compare_pearson(
    real: Array, generated: Array, bootstrap: Bootstrap, *, seed: int = 0, permutations: int = 10
) -> Comparison:
    """:func:`pearson` of real and generated scores, and with outputs randomly reassigned across studies."""
    orders = derangements(bootstrap.n, permutations, seed)
    shuffled = [pearson(real, generated[order], bootstrap) for order in orders]
    return Comparison(pearson(real, generated, bootstrap), average(shuffled))
