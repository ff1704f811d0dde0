"""Structural similarity of images, and diversity of the samples of one prompt."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.metrics.bootstrap import Array
from xgem.types import InputError


def ssim(first: NDArray[Any], second: NDArray[Any], *, window: int = 11, sigma: float = 1.5) -> float:
    """Structural similarity of two images (h, w) in [0, 1] (Wang et al. 2004): Gaussian window, K 0.01 and 0.03.

    Averaged over the positions where the window lies inside the image. 1 for equal images.
    """
    return _similarity(first, second, window, sigma)[0]


def _similarity(first: NDArray[Any], second: NDArray[Any], window: int, sigma: float) -> tuple[float, float]:
    """Mean structural similarity, and the mean of its contrast-structure term."""
    from scipy.ndimage import gaussian_filter

    if first.shape != second.shape or first.ndim != 2 or min(first.shape) < window:
        raise InputError(
            f"images of shapes {first.shape} and {second.shape}: expected two of (h, w), at least {window}"
        )
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    radius = window // 2

    def blur(values: Array) -> Array:
        """Local means (h - 2 radius, w - 2 radius)."""
        return gaussian_filter(values, sigma, radius=radius)[radius:-radius, radius:-radius]

    mx, my = blur(x), blur(y)
    vx, vy, cov = blur(x * x) - mx * mx, blur(y * y) - my * my, blur(x * y) - mx * my
    c1, c2 = 0.01**2, 0.03**2
    contrast = (2 * cov + c2) / (vx + vy + c2)
    luminance = (2 * mx * my + c1) / (mx**2 + my**2 + c1)
    return float((luminance * contrast).mean()), float(contrast.mean())


MS_SSIM_WEIGHTS: Final = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
MS_SSIM_SIDE: Final = 11 * 2 ** (len(MS_SSIM_WEIGHTS) - 1)
"""The smallest side for five scales with an 11-pixel window."""


def ms_ssim(first: NDArray[Any], second: NDArray[Any]) -> float:
    """Multi-scale structural similarity of two images (h, w) in [0, 1] (Wang et al. 2003, eq. 7), five scales.

    Each scale averages 2 x 2 pixels; negative terms count as 0. Sides must be at least :data:`MS_SSIM_SIDE`.
    """
    if first.ndim != 2 or min(first.shape) < MS_SSIM_SIDE:
        raise InputError(f"images of shape {first.shape}: multi-scale SSIM needs sides of at least {MS_SSIM_SIDE}")
    x, y = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    result = 1.0
    for scale, weight in enumerate(MS_SSIM_WEIGHTS):
        full, contrast = _similarity(x, y, 11, 1.5)
        last = scale == len(MS_SSIM_WEIGHTS) - 1
        result *= max(0.0, full if last else contrast) ** weight  # luminance enters at the coarsest scale alone
        x, y = _halved(x), _halved(y)
    return result


def _halved(image: Array) -> Array:
    h, w = image.shape[0] // 2 * 2, image.shape[1] // 2 * 2
    return image[:h, :w].reshape(h // 2, 2, w // 2, 2).mean(axis=(1, 3))


def pairwise(samples: NDArray[Any], similarity: Callable[[NDArray[Any], NDArray[Any]], float] = ssim) -> float:
    """Mean similarity over all pairs of (seeds, h, w) images in [0, 1] of one prompt; the lower, the more diverse.

    ChexGen: SSIM over the 6 pairs of 4 seeds, averaged per prompt and then over prompts; its abstract says MS-SSIM.
    """
    if samples.ndim != 3 or len(samples) < 2:
        raise InputError(f"samples of shape {samples.shape}: expected (seeds, h, w) with at least two seeds")
    return float(np.mean([similarity(samples[i], samples[j]) for i, j in combinations(range(len(samples)), 2)]))


def diversity(samples: NDArray[Any]) -> Array:
    """Diversity over the seeds of each of n prompts: 1 - SSIM, averaged over the pairs of its samples.

    Args:
        samples: (n, seeds, h, w) in [0, 1], at least two seeds.

    Returns:
        (n,); 0 where all seeds give the same image.
    """
    if samples.ndim != 4 or samples.shape[1] < 2:
        raise InputError(f"samples of shape {samples.shape}: expected (n, seeds, h, w) with at least two seeds")
    return np.array([1 - pairwise(prompt) for prompt in samples])
