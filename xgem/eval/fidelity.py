"""How generated pictures compare with real ones as sets, and with one another over seeds.

Intervals of the distances between sets come from bootstrap draws of at most :data:`ROWS` rows of either side: a draw's
spread falls as the square root of its rows, so the spread is scaled to the sets' own size (Politis & Romano 1994), and
it is put about the value, because resampling repeats samples and so shifts distances upwards. With that an interval
costs the same at 1,000 and at 100,000 pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.eval import neighbours
from xgem.eval.statistics import Array, Estimate, Sampled
from xgem.types import InputError

ROWS: Final = 1000
_BLOCK: Final = 4096


def frechet(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Frechet distance of Gaussians fitted to two feature sets (Heusel et al. 2017).

    Args:
        first, second: (n, d) and (m, d) features, n and m at least 2.

    Returns:
        ``|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2))`` with unbiased covariances, at least 0.

    With ``S = A^T A`` the last trace is the nuclear norm of ``A1 A2^T``, which needs no matrix square root and stays
    exact where there are fewer samples than dimensions.
    """
    _check(first, second, 2, "a Frechet distance")
    mean1, root1 = _mean_and_root(first)
    mean2, root2 = _mean_and_root(second)
    cross = float(np.linalg.svd(root1 @ root2.T, compute_uv=False).sum())
    distance = float(((mean1 - mean2) ** 2).sum() + (root1**2).sum() + (root2**2).sum() - 2 * cross)
    return max(0.0, distance)


def _mean_and_root(features: NDArray[Any]) -> tuple[Array, Array]:
    """Mean (d,) and a factor A (min(n, d), d) with ``A^T A`` the covariance."""
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
    """:func:`frechet` with its interval; n is that of the smaller set.

    Raises:
        InputError: fewer than 2 pictures on a side.
    """
    sampled = sampled_frechet(generated, real, draws=draws, seed=seed)
    return _smaller(_not_negative(sampled.estimate()), real, generated)


def sampled_frechet(first: NDArray[Any], second: NDArray[Any], *, draws: int = 50, seed: int = 0) -> Sampled:
    """Frechet distance with bootstrap draws of both sets, recentred on the value.

    Resampling repeats samples and so raises the distance in every draw; the spread is kept and the bias is taken off.
    """
    rng = np.random.default_rng(seed)
    rows = min(len(first), ROWS), min(len(second), ROWS)
    values = [
        frechet(first[rng.integers(0, len(first), rows[0])], second[rng.integers(0, len(second), rows[1])])
        for _ in range(draws)
    ]
    return _scaled(frechet(first, second), np.array(values), min(rows), first, second)


def _scaled(value: float, draws: Array, rows: int, first: NDArray[Any], second: NDArray[Any]) -> Sampled:
    """Draws of ``rows`` rows, brought about the value and to the spread of the whole sets."""
    recentred = Sampled(value, draws, len(first)).recentred()
    scale = np.sqrt(rows / min(len(first), len(second)))
    return Sampled(value, value + (recentred.draws - value) * scale, len(first))


def real_floor(training: NDArray[Any], real: NDArray[Any], *, draws: int = 20, seed: int = 0) -> Sampled:
    """Frechet distance between the n real pictures and n real training pictures, over random choices of the latter.

    The least that a generator can be asked for at this n: a Frechet distance grows as n falls.
    """
    n = len(real)
    if len(training) < n:
        raise InputError(f"{len(training)} training pictures for a floor at n {n}: give at least as many")
    rng = np.random.default_rng(seed)
    values = [frechet(training[rng.choice(len(training), n, replace=False)], real) for _ in range(draws)]
    return Sampled(float(np.mean(values)), np.array(values), n)


def kernel_subsets(
    real: NDArray[Any], generated: NDArray[Any], *, subsets: int = 100, subset_size: int | None = 1000, seed: int = 0
) -> Array:
    """Kernel distances (KID, Binkowski et al. 2018) of random subsets, (subsets,).

    Each is the unbiased squared maximum mean discrepancy (Gretton et al. 2012, eq. 3) under the cubic polynomial kernel
    ``(x.y / d + 1)^3`` between ``subset_size`` real and as many generated features, drawn without replacement.

    Args:
        subset_size: sets that are smaller are taken whole. None takes as many as the smaller set has, as
            CheXGenBench's code does (compat): subsets then hardly differ, and their spread means nothing.
    """
    _check(real, generated, 2, "a kernel distance")
    size = min(len(real), len(generated), subset_size or len(real))
    if size == len(real) == len(generated):
        return np.full(subsets, _discrepancy(real, generated))  # all subsets are the sets themselves
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

    The interval is of the sets, not of the choice of subsets: the spread over subsets, which others print beside the
    mean, depends on their size and vanishes where they are the whole sets. Two copies of one picture in a draw are no
    pair of different ones, so that draws stay unbiased.

    Raises:
        InputError: fewer than 2 pictures on a side.
    """
    value = float(kernel_subsets(real, generated, subsets=subsets, subset_size=subset_size, seed=seed).mean())
    rng = np.random.default_rng([seed, 1])
    rows = min(len(real), len(generated), ROWS)
    x = real[rng.choice(len(real), rows, replace=False)]
    y = generated[rng.choice(len(generated), rows, replace=False)]
    w, v = (rng.multinomial(rows, np.full(rows, 1 / rows), size=draws).astype(np.float64) for _ in range(2))
    between = np.einsum("bi,bi->b", w @ _kernel(x, y).astype(np.float64), v) / rows**2
    values = _different(w, _kernel(x, x)) + _different(v, _kernel(y, y)) - 2 * between
    return _smaller(_scaled(value, values, rows, real, generated).estimate(), real, generated)


def _different(weights: Array, kernel: NDArray[Any]) -> Array:
    """Mean of a kernel (n, n) over pairs of different samples, each as often as (draws, n) weights say."""
    kernel = kernel.astype(np.float64)
    squares = weights**2
    total = np.einsum("bi,bi->b", weights @ kernel, weights) - squares @ np.diag(kernel)
    return total / (weights.sum(axis=1) ** 2 - squares.sum(axis=1))


def _discrepancy(x: NDArray[Any], y: NDArray[Any]) -> float:
    within = sum(_kernel_sum(one, one, own=False) / (len(one) * (len(one) - 1)) for one in (x, y))
    return within - 2 * _kernel_sum(x, y) / (len(x) * len(y))


def _kernel_sum(x: NDArray[Any], y: NDArray[Any], *, own: bool = True) -> float:
    """Sum of the kernel over all pairs, in blocks; without those of a sample with itself where not ``own``."""
    total = 0.0
    for i in range(0, len(x), neighbours.BLOCK):
        for j in range(0, len(y), neighbours.BLOCK):
            block = _kernel(x[i : i + neighbours.BLOCK], y[j : j + neighbours.BLOCK])
            total += float(block.sum(dtype=np.float64))
            if not own and i == j:
                total -= float(np.trace(block, dtype=np.float64))
    return total


def _kernel(x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """``(x.y / d + 1)^3``, in the features' own precision."""
    product = x @ y.T
    product *= 1 / x.shape[1]
    product += 1
    cube = product * product
    cube *= product
    return cube


@dataclass(frozen=True)
class Manifolds:
    """Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020).

    Each sample's ball reaches to its k-th nearest neighbour of the same set and is open (strict ``<``).

    - ``precision``: share of generated samples in any real ball; ``density``: mean number of real balls about a
      generated sample, over k, which may exceed 1. n is the generated set's.
    - ``recall``: share of real samples in any generated ball; ``coverage``: share of real balls that hold a generated
      sample. n is the real set's.
    """

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def prdc(real: NDArray[Any], generated: NDArray[Any], k: int = 5, *, seed: int = 0, draws: int = 1000) -> Manifolds:
    """Precision, recall, density, coverage of (n, d) real and (m, d) generated features.

    All four are means of a number a sample; intervals resample the samples that the mean runs over and hold the balls
    fixed. See :mod:`xgem.eval.neighbours` for how this stays exact and small in memory.

    Raises:
        InputError: no more than k pictures on a side.
    """
    _check(real, generated, k + 1, f"precision and recall with k {k}")
    found = neighbours.overlap(
        real, generated, neighbours.squared_radii(real, k), neighbours.squared_radii(generated, k)
    )
    return Manifolds(
        precision=mean_estimate(found.balls > 0, seed=seed, draws=draws),
        recall=mean_estimate(found.reached, seed=seed, draws=draws),
        density=mean_estimate(found.balls / k, seed=seed, draws=draws),
        coverage=mean_estimate(found.covered, seed=seed, draws=draws),
    )


def alignment(pictures: NDArray[Any], texts: NDArray[Any], *, seed: int = 0, draws: int = 1000) -> Estimate:
    """Mean cosine of pictures' (n, d) and their prompts' (n, d) vectors of one image-text space, in [-1, 1]."""
    return mean_estimate((_unit(pictures) * _unit(texts)).sum(axis=1), seed=seed, draws=draws)


def shuffled_alignment(pictures: NDArray[Any], texts: NDArray[Any], *, seed: int = 0, draws: int = 1000) -> Estimate:
    """The control of :func:`alignment`: the mean cosine of each picture with all other pictures' prompts."""
    x, y = _unit(pictures), _unit(texts)
    if len(x) < 2:
        raise InputError("1 picture: shuffled prompts need at least 2")
    others = (x @ y.sum(axis=0) - (x * y).sum(axis=1)) / (len(x) - 1)
    return mean_estimate(others, seed=seed, draws=draws)


def _unit(vectors: NDArray[Any]) -> Array:
    values = np.asarray(vectors, dtype=np.float64)
    lengths = np.linalg.norm(values, axis=1, keepdims=True)
    if values.ndim != 2 or not (lengths > 0).all():
        raise InputError("a vector of length 0 has no cosine: look at what made it")
    return values / lengths


def mean_estimate(values: NDArray[Any], *, seed: int = 0, draws: int = 1000) -> Estimate:
    """Mean of (n,) numbers with its bootstrap interval, one draw in memory at a time."""
    if not len(values):
        raise InputError("a mean needs at least 1 value; there are none")
    numbers = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(seed)
    n = len(numbers)
    means = np.array([numbers[rng.integers(0, n, n)].mean() for _ in range(draws)])
    return Sampled(float(numbers.mean()), means, n).estimate()


def _not_negative(one: Estimate) -> Estimate:
    return Estimate(one.value, max(0.0, one.low), one.high, one.n)


def _smaller(one: Estimate, first: NDArray[Any], second: NDArray[Any]) -> Estimate:
    return Estimate(one.value, one.low, one.high, min(len(first), len(second)))


def _check(first: NDArray[Any], second: NDArray[Any], need: int, what: str) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise InputError(f"features of shapes {first.shape} and {second.shape}: expected (n, d) and (m, d)")
    if min(len(first), len(second)) < need:
        raise InputError(f"{len(first)} and {len(second)} pictures: {what} needs at least {need} on each side")


def ssim(first: NDArray[Any], second: NDArray[Any], *, window: int = 11, sigma: float = 1.5) -> float:
    """Structural similarity of two pictures (h, w) in [0, 1] (Wang et al. 2004): Gaussian window, K 0.01 and 0.03.

    The mean is taken where the window lies inside the picture. 1 for equal pictures.
    """
    return _similarity(first, second, window, sigma)[0]


def _similarity(first: NDArray[Any], second: NDArray[Any], window: int, sigma: float) -> tuple[float, float]:
    """Mean structural similarity, and mean contrast-structure term alone."""
    from scipy.ndimage import gaussian_filter

    if first.shape != second.shape or first.ndim != 2 or min(first.shape) < window:
        raise InputError(
            f"pictures of shapes {first.shape} and {second.shape}: expected two of (h, w), at least {window}"
        )
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    radius = window // 2

    def blur(values: Array) -> Array:
        return gaussian_filter(values, sigma, radius=radius)[radius:-radius, radius:-radius]

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    contrast = (2 * cov + c2) / (vx + vy + c2)
    luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
    return float((luminance * contrast).mean()), float(contrast.mean())


MS_SSIM_WEIGHTS: Final = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE: Final = 11 * 2 ** (len(MS_SSIM_WEIGHTS) - 1)
"""The smallest side that five scales of an 11-pixel window allow."""


def ms_ssim(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Multi-scale structural similarity of two pictures (h, w) in [0, 1] (Wang et al. 2003, eq. 7), five scales.

    Scales are halved by the mean of 2 x 2 pixels; negative terms count as 0. Sides of at least :data:`MS_SSIM_SIDE`.
    """
    if first.ndim != 2 or min(first.shape) < MS_SSIM_SIDE:
        raise InputError(f"pictures of shape {first.shape}: multi-scale SSIM needs at least {MS_SSIM_SIDE} a side")
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    result = 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        whole, contrast = _similarity(x, y, 11, 1.5)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        result *= max(0.0, whole if last else contrast) ** weight
        x, y = _halved(x), _halved(y)
    return result


def _halved(picture: Array) -> Array:
    h, w = picture.shape[0] // 2 * 2, picture.shape[1] // 2 * 2
    return picture[:h, :w].reshape(h // 2, 2, w // 2, 2).mean(axis=(1, 3))


def pairwise(samples: NDArray[Any], similarity: Callable[[NDArray[Any], NDArray[Any]], float] = ssim) -> float:
    """Mean similarity over the pairs of (seeds, h, w) pictures in [0, 1] of one prompt; the lower, the more diverse.

    ChexGen: SSIM over the 6 pairs of 4 seeds, averaged per prompt and then over prompts; its abstract names MS-SSIM.
    """
    if samples.ndim != 3 or len(samples) < 2:
        raise InputError(f"samples of shape {samples.shape}: expected (seeds, h, w) with at least two seeds")
    return float(np.mean([similarity(samples[i], samples[j]) for i, j in combinations(range(len(samples)), 2)]))


def diversity(samples: NDArray[Any]) -> Array:
    """Diversity over seeds of each of n prompts: 1 - SSIM, mean over the pairs of its samples.

    Args:
        samples: (n, seeds, h, w) in [0, 1], at least two seeds.

    Returns:
        (n,), 0 where all seeds give the same picture.
    """
    if samples.ndim != 4 or samples.shape[1] < 2:
        raise InputError(f"samples of shape {samples.shape}: expected (n, seeds, h, w) with at least two seeds")
    return np.array([1 - pairwise(one) for one in samples])
