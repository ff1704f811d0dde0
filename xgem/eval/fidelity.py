"""How generated pictures compare with real ones as sets, and with one another over seeds."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xgem.eval.statistics import Array, Sampled
from xgem.types import InputError


def frechet_distance(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Frechet distance of Gaussians fitted to two feature sets (Heusel et al. 2017).

    Args:
        first, second: (n, d) and (m, d) features, n and m at least 2.

    Returns:
        ``|m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2))`` with unbiased covariances, at least 0.

    With ``S = A^T A`` the last trace is the nuclear norm of ``A1 A2^T``, which needs no matrix square root and stays
    exact where there are fewer samples than dimensions.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise InputError(f"features of shapes {first.shape} and {second.shape}: expected (n, d) and (m, d)")
    if min(len(first), len(second)) < 2:
        raise InputError(f"{len(first)} and {len(second)} samples: a Frechet distance needs at least 2 on each side")
    mean1, root1 = _mean_and_root(first)
    mean2, root2 = _mean_and_root(second)
    cross = float(np.linalg.svd(root1 @ root2.T, compute_uv=False).sum())
    distance = float(((mean1 - mean2) ** 2).sum() + (root1**2).sum() + (root2**2).sum() - 2 * cross)
    return max(0.0, distance)


def _mean_and_root(features: NDArray[Any]) -> tuple[Array, Array]:
    """Mean (d,) and a factor A (min(n, d), d) with ``A^T A`` the covariance."""
    values = np.asarray(features, dtype=np.float64)
    mean = values.mean(axis=0)
    centred = (values - mean) / np.sqrt(len(values) - 1)
    if len(centred) > centred.shape[1]:
        centred = np.asarray(np.linalg.qr(centred, mode="r"), dtype=np.float64)
    return mean, centred


def sampled_frechet(first: NDArray[Any], second: NDArray[Any], *, draws: int = 50, seed: int = 0) -> Sampled:
    """Frechet distance with bootstrap draws of both sets, recentred on the value.

    Resampling repeats samples and so raises the distance in every draw; the spread is kept and the bias is taken off.
    """
    rng = np.random.default_rng(seed)
    values = [
        frechet_distance(
            first[rng.integers(0, len(first), len(first))], second[rng.integers(0, len(second), len(second))]
        )
        for _ in range(draws)
    ]
    return Sampled(frechet_distance(first, second), np.array(values), len(first)).recentred()


def real_floor(training: NDArray[Any], real: NDArray[Any], *, draws: int = 20, seed: int = 0) -> Sampled:
    """Frechet distance between the n real pictures and n real training pictures, over random choices of the latter.

    The least that a generator can be asked for at this n: a Frechet distance grows as n falls.
    """
    n = len(real)
    if len(training) < n:
        raise InputError(f"{len(training)} training pictures for a floor at n {n}: give at least as many")
    rng = np.random.default_rng(seed)
    values = [frechet_distance(training[rng.choice(len(training), n, replace=False)], real) for _ in range(draws)]
    return Sampled(float(np.mean(values)), np.array(values), n)


def ssim(first: NDArray[Any], second: NDArray[Any], *, window: int = 11, sigma: float = 1.5) -> float:
    """Structural similarity of two pictures (h, w) in [0, 1] (Wang et al. 2004): Gaussian window, K 0.01 and 0.03.

    The mean is taken where the window lies inside the picture. 1 for equal pictures.
    """
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
    return float((((2 * mx * my + c1) * (2 * cov + c2)) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def diversity(samples: NDArray[Any]) -> Array:
    """Diversity over seeds of each of n prompts: 1 - SSIM, mean over the pairs of its samples.

    Args:
        samples: (n, seeds, h, w) in [0, 1], at least two seeds.

    Returns:
        (n,), 0 where all seeds give the same picture.
    """
    if samples.ndim != 4 or samples.shape[1] < 2:
        raise InputError(f"samples of shape {samples.shape}: expected (n, seeds, h, w) with at least two seeds")
    pairs = list(combinations(range(samples.shape[1]), 2))
    return np.array([1 - float(np.mean([ssim(one[i], one[j]) for i, j in pairs])) for one in samples])
