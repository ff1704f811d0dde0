"""Sharpness as radial power: does an image have the fine detail of a real one of its size?"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xgem.metrics.bootstrap import Array, Bootstrap, Sampled
from xgem.types import InputError

BAND = (0.25, 1.0)
"""The upper three quarters of the spectrum: radial frequencies from a quarter of Nyquist to Nyquist, both included."""


def radial_power(images: NDArray[Any], *, bins: int = 32) -> tuple[Array, Array]:
    """Radial power curves.

    Args:
        images: (n, s, s) in any fixed range; the mean is subtracted and a Hann window applied before the FFT.
        bins: number of rings of equal width in radial frequency between 0 and Nyquist.

    Returns:
        frequencies (bins,), the rings' centres in units of Nyquist, and (n, bins) summed power of each ring. Corners
        beyond Nyquist are left out.
    """
    frequency, power = _spectrum(images)
    inside = frequency <= 1.0
    ring = np.minimum((frequency[inside] * bins).astype(int), bins - 1)
    flat = power[:, inside]  # (n, frequencies)
    curves = np.stack([np.bincount(ring, weights=row, minlength=bins) for row in flat]).astype(np.float64)
    return (np.arange(bins, dtype=np.float64) + 0.5) / bins, curves


def band_power(images: NDArray[Any], band: tuple[float, float] = BAND) -> Array:
    """Summed power of each image (n,) at the radial frequencies in ``band`` (units of Nyquist, ends included)."""
    frequency, power = _spectrum(images)
    return power[:, (frequency >= band[0]) & (frequency <= band[1])].sum(axis=1)


def band_ratio(
    images: NDArray[Any],
    real: NDArray[Any],
    bootstrap: Bootstrap,
    band: tuple[float, float] = BAND,
) -> Sampled:
    """Mean band power of ``images`` over that of ``real``: 1 is as sharp as real, below 1 blurred, above 1 noisy.

    Both are (n, s, s) of the same n studies.
    """
    return bootstrap.ratio(band_power(images, band), band_power(real, band))


def _spectrum(images: NDArray[Any]) -> tuple[Array, Array]:
    """Radial frequency (s, s) in units of Nyquist and power (n, s, s)."""
    values = np.asarray(images, dtype=np.float64)
    if values.ndim != 3 or values.shape[1] != values.shape[2] or values.shape[1] < 8:
        raise InputError(f"images of shape {values.shape}: expected (n, s, s) with s at least 8")
    size = values.shape[1]
    window = np.hanning(size)
    values = (values - values.mean(axis=(1, 2), keepdims=True)) * np.outer(window, window)
    axis = np.abs(np.fft.fftfreq(size)) * 2
    return np.hypot(axis[:, None], axis[None, :]), np.abs(np.fft.fft2(values)) ** 2
