"""How generated images compare with real ones as sets.

Intervals stay affordable at 100,000 images. A mean resamples the values that it averages. A kernel distance resamples
:data:`ROWS` images per side and scales the spread to the sets' size (Politis & Romano 1994). A Frechet distance is
biased by duplicated images, as its bias depends on n: it takes random halves of both sides without replacement, whose
spread about the full sample estimates that of the full sample about the truth (Shao & Wu 1989).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.metrics import neighbours
from xgem.metrics.bootstrap import Array, Estimate, Sampled
from xgem.metrics.vectors import unit
from xgem.types import InputError

ROWS: Final = 1000
GROUPS: Final = 32
_BLOCK: Final = 4096


def frechet(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Frechet distance between Gaussians fitted to two feature sets (Heusel et al. 2017).

    Args:
        first, second: (n, d) and (m, d) features, n and m at least 2.

    Returns:
        ``|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2))`` with unbiased covariances, at least 0.

    With ``S = A^T A`` the trace of the root is the nuclear norm of ``A1 A2^T``, which needs no matrix square root and
    stays exact with fewer samples than dimensions.
    """
    _check(first, second, 2, "a Frechet distance")
    mean1, root1 = _mean_and_root(first)
    mean2, root2 = _mean_and_root(second)
    cross = float(np.linalg.svd(root1 @ root2.T, compute_uv=False).sum())
    distance = float(((mean1 - mean2) ** 2).sum() + (root1**2).sum() + (root2**2).sum() - 2 * cross)
    return max(0.0, distance)


def _mean_and_root(features: NDArray[Any]) -> tuple[Array, Array]:
    """Mean (d,) of (n, d) features, and a factor A (min(n, d), d) such that ``A^T A`` is their covariance."""
    n, d = features.shape
    mean = features.mean(axis=0, dtype=np.float64)
    if n <= d:
        return mean, (features - mean) / np.sqrt(n - 1)
    covariance = np.zeros((d, d))
    for start in range(0, n, _BLOCK):
        centred = features[start : start + _BLOCK] - mean
        covariance += centred.T @ centred
    values, vectors = np.linalg.eigh(covariance / (n - 1))
    return mean, np.sqrt(np.clip(values, 0, None))[:, None] * vectors.T


def frechet_distance(real: NDArray[Any], generated: NDArray[Any], *, seed: int = 0, draws: int = 30) -> Estimate:
    """:func:`frechet` with an interval from random halves, centred on the value; n is that of the smaller set.

    A side of more than :data:`ROWS` images is halved by :data:`GROUPS` random groups, whose moments are computed
    once, so that a draw costs the same at any n. With fewer than 4 images the interval is NaN.

    Raises:
        InputError: fewer than 2 images on a side.
    """
    n = min(len(real), len(generated))
    value = frechet(real, generated)
    rng = np.random.default_rng(seed)
    small, large = sorted((real, generated), key=len)
    parts = tuple(_Groups.of(side, rng) if len(side) > ROWS else None for side in (small, large))
    values = [_half_distance(small, large, parts, rng) for _ in range(draws if n >= 4 else 0)]
    estimate = Sampled(value, np.array(values), n).recentred().estimate()
    return replace(estimate, low=max(0.0, estimate.low))


def _half_distance(
    small: NDArray[Any], large: NDArray[Any], groups: tuple[_Groups | None, ...], rng: np.random.Generator
) -> float:
    """The distance between random halves of both sides; ``large`` is grouped whenever ``small`` is."""

    def half(side: NDArray[Any]) -> NDArray[Any]:
        return side[rng.permutation(len(side))[: len(side) // 2]]

    if groups[1] is None:
        return frechet(half(small), half(large))
    mean1, root = _mean_and_root(half(small)) if groups[0] is None else _rooted(*groups[0].half(rng))
    mean2, covariance = groups[1].half(rng)
    spectrum = np.linalg.eigvalsh(root @ covariance @ root.T)  # squares of the nuclear norm's singular values
    cross = float(np.sqrt(np.clip(spectrum, 0, None)).sum())
    return float(((mean1 - mean2) ** 2).sum() + (root**2).sum() + np.trace(covariance) - 2 * cross)


@dataclass(frozen=True)
class _Groups:
    """Counts (g,), sums (g, d) and scatter matrices (g, d, d) of random groups about a common centre (d,)."""

    centre: Array
    counts: Array
    sums: Array
    scatter: NDArray[np.float32]

    @classmethod
    def of(cls, features: NDArray[Any], rng: np.random.Generator) -> _Groups:
        d = features.shape[1]
        centre = features.mean(axis=0, dtype=np.float64)
        parts = np.array_split(rng.permutation(len(features)), GROUPS)
        sums, scatter = np.empty((GROUPS, d)), np.empty((GROUPS, d, d), dtype=np.float32)
        for group, rows in enumerate(parts):
            centred = (features[np.sort(rows)] - centre).astype(np.float32)
            sums[group], scatter[group] = centred.sum(axis=0, dtype=np.float64), centred.T @ centred
        return cls(centre, np.array([float(len(rows)) for rows in parts]), sums, scatter)

    def half(self, rng: np.random.Generator) -> tuple[Array, Array]:
        """Mean (d,) and covariance (d, d) of a random half of the groups."""
        chosen = rng.permutation(GROUPS)[: GROUPS // 2]
        n = float(self.counts[chosen].sum())
        mean = self.sums[chosen].sum(axis=0) / n
        scatter = np.zeros(self.scatter.shape[1:])
        for group in chosen:
            scatter += self.scatter[group]
        return self.centre + mean, (scatter - n * np.outer(mean, mean)) / (n - 1)


def _rooted(mean: Array, covariance: Array) -> tuple[Array, Array]:
    """The mean, and a factor A such that ``A^T A`` is the covariance, with jitter on its diagonal."""
    jitter = max(1e-300, 1e-7 * float(np.trace(covariance)) / len(covariance))
    lower: Array = np.linalg.cholesky(covariance + jitter * np.eye(len(covariance))).astype(np.float64)
    return mean, lower.T


def kernel_subsets(
    real: NDArray[Any], generated: NDArray[Any], *, subsets: int = 100, subset_size: int | None = 1000, seed: int = 0
) -> Array:
    """Kernel distances (KID, Binkowski et al. 2018) of random subsets, (subsets,).

    Each is the unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3) with the cubic polynomial kernel
    ``(x.y / d + 1)^3`` between ``subset_size`` real and as many generated features, drawn without replacement.

    Args:
        subset_size: smaller sets are used whole. None uses the size of the smaller set, as CheXGenBench's code does:
            subsets then hardly differ, and their spread is not meaningful.
    """
    _check(real, generated, 2, "a kernel distance")
    size = min(len(real), len(generated), subset_size or len(real))
    if size == len(real) == len(generated):
        return np.full(subsets, _discrepancy(real, generated))  # each subset is the whole set
    rng = np.random.default_rng(seed)
    choose = rng.choice
    values = [
        _discrepancy(real[choose(len(real), size, False)], generated[choose(len(generated), size, False)])
        for _ in range(subsets)
    ]
    return np.array(values)


def kernel_distance(
    real: NDArray[Any],
    generated: NDArray[Any],
    *,
    subsets: int = 100,
    subset_size: int | None = 1000,
    seed: int = 0,
    draws: int = 1000,
) -> Estimate:
    """Mean of :func:`kernel_subsets` with a bootstrap interval; n is that of the smaller set.

    The interval reflects the sampling of the images, not the choice of subsets: the spread over subsets, which others
    report with the mean, depends on their size and is 0 for subsets that are the whole sets. Two copies of one image
    in a draw do not count as a pair of different images, so that draws stay unbiased.

    Raises:
        InputError: fewer than 2 images on a side.
    """
    value = float(kernel_subsets(real, generated, subsets=subsets, subset_size=subset_size, seed=seed).mean())
    # Bootstrap the discrepancy of at most ROWS images per side, as weights on fixed kernel matrices
    rng = np.random.default_rng([seed, 1])
    rows = min(len(real), len(generated), ROWS)
    x = real[rng.choice(len(real), rows, replace=False)]
    y = generated[rng.choice(len(generated), rows, replace=False)]
    w, v = (rng.multinomial(rows, np.full(rows, 1 / rows), size=draws).astype(np.float64) for _ in range(2))
    between = np.einsum("bi,bi->b", w @ _kernel(x, y).astype(np.float64), v) / rows**2
    values = _different(w, _kernel(x, x)) + _different(v, _kernel(y, y)) - 2 * between
    n = min(len(real), len(generated))
    recentred = Sampled(value, values, n).recentred()
    # The spread of the draws scales with 1 / sqrt(rows), or even faster for a distance near 0
    return replace(recentred, draws=value + (recentred.draws - value) * np.sqrt(rows / n)).estimate()


def _different(weights: Array, kernel: NDArray[Any]) -> Array:
    """Mean of a kernel (n, n) over pairs of different samples, weighted by how often each was drawn: (draws,)."""
    kernel = kernel.astype(np.float64)
    squares = weights**2
    total = np.einsum("bi,bi->b", weights @ kernel, weights) - squares @ np.diag(kernel)
    with np.errstate(invalid="ignore"):  # a draw with copies of a single sample has no pairs: NaN, ignored later
        return total / (weights.sum(axis=1) ** 2 - squares.sum(axis=1))


def _discrepancy(x: NDArray[Any], y: NDArray[Any]) -> float:
    """Unbiased squared maximum mean discrepancy of (n, d) and (m, d) features."""
    within = sum(_kernel_sum(side, side, diagonal=False) / (len(side) * (len(side) - 1)) for side in (x, y))
    return within - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def _kernel_sum(x: NDArray[Any], y: NDArray[Any], *, diagonal: bool = True) -> float:
    """Sum of the kernel over all pairs, in blocks; without pairs of a sample with itself if not ``diagonal``."""
    total = 0.0
    for i in range(0, len(x), neighbours.BLOCK):
        for j in range(0, len(y), neighbours.BLOCK):
            block = _kernel(x[i : i + neighbours.BLOCK], y[j : j + neighbours.BLOCK])
            total += float(block.sum(dtype=np.float64))
            if not diagonal and i == j:
                total -= float(np.trace(block, dtype=np.float64))
    return total


def _kernel(x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """``(x.y / d + 1)^3`` of (n, d) and (m, d) features, (n, m), in their own precision."""
    product = x @ y.T
    product *= 1 / x.shape[1]
    product += 1
    cube = product * product
    cube *= product
    return cube


@dataclass(frozen=True)
class Manifolds:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Each sample's ball reaches to its k-th nearest neighbour in the same set and is open (strict ``<``).

    - ``precision``: share of generated samples in any real ball; ``density``: mean number of real balls that contain a
      generated sample, divided by k, which may exceed 1. n is that of the generated set.
    - ``recall``: share of real samples in any generated ball; ``coverage``: share of real balls that contain a
      generated sample. n is that of the real set.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def prdc(real: NDArray[Any], generated: NDArray[Any], k: int = 5, *, seed: int = 0, draws: int = 1000) -> Manifolds:
    """Precision, recall, density, coverage of (n, d) real and (m, d) generated features.

    All four are means of a value per sample; intervals resample the samples that are averaged and keep the balls
    fixed. See :mod:`xgem.metrics.neighbours` for how this stays exact and memory-efficient.

    Raises:
        InputError: no more than k images on a side.
    """
    _check(real, generated, k + 1, f"PRDC with k {k}")
    counts = neighbours.overlap(
        real, generated, neighbours.squared_radii(real, k), neighbours.squared_radii(generated, k)
    )
    return Manifolds(
        precision=mean_estimate(counts.balls > 0, seed=seed, draws=draws),
        recall=mean_estimate(counts.reached, seed=seed, draws=draws),
        density=mean_estimate(counts.balls / k, seed=seed, draws=draws),
        coverage=mean_estimate(counts.covered, seed=seed, draws=draws),
    )


def alignment(images: NDArray[Any], texts: NDArray[Any], *, seed: int = 0, draws: int = 1000) -> Estimate:
    """Mean cosine similarity of images (n, d) and their prompts (n, d) in one image-text space, in [-1, 1]."""
    return mean_estimate((unit(images) * unit(texts)).sum(axis=1), seed=seed, draws=draws)


def shuffled_alignment(images: NDArray[Any], texts: NDArray[Any], *, seed: int = 0, draws: int = 1000) -> Estimate:
    """The control of :func:`alignment`: mean cosine similarity of each image with all other images' prompts."""
    x, y = unit(images), unit(texts)
    if len(x) < 2:
        raise InputError("1 image: shuffled prompts need at least 2")
    others = (x @ y.sum(axis=0) - (x * y).sum(axis=1)) / (len(x) - 1)
    return mean_estimate(others, seed=seed, draws=draws)


def mean_estimate(values: NDArray[Any], *, seed: int = 0, draws: int = 1000) -> Estimate:
    """Mean of (n,) values with its bootstrap interval, with one draw in memory at a time."""
    if not len(values):
        raise InputError("no values: a mean needs at least 1")
    numbers = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    n = len(numbers)
    means = np.array([numbers[rng.integers(0, n, n)].mean() for _ in range(draws)])
    return Sampled(float(numbers.mean()), means, n).estimate()


def _check(first: NDArray[Any], second: NDArray[Any], need: int, what: str) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise InputError(f"features of shapes {first.shape} and {second.shape}: expected (n, d) and (m, d)")
    if min(len(first), len(second)) < need:
        raise InputError(f"{len(first)} and {len(second)} images: {what} needs at least {need} on each side")
