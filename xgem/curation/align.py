"""Whether two similar radiographs are one picture: they are laid over each other, and their fine structure compared.

One may be a crop of the other: shift and scale along both axes are fitted by Gauss-Newton steps on the thumbnails
(:mod:`xgem.curation.fingerprint`), first on blurred ones. What counts is the correlation of what a blur takes away:
ribs, vessels, devices and markers, which two pictures of even the same patient do not share at the same places.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from xgem.curation.fingerprint import SIDE

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

_BLURS: Final = (3.0, 1.5, 0.7)  # pixels of the thumbnail, by stage
_STEPS: Final = (4, 3, 3)
_FINE: Final = 2.5  # what this blur leaves is anatomy that all patients share
_EVEN: Final = 5.0  # over which fine structure is brought to one variance: a collimator's edges would rule
_EDGE: Final = 3  # pixels at the edge, where a blur sees another surrounding
_MOST: Final = 0.25  # shift and change of scale, as a share of half the side
_GRID: Final = np.linspace(-1, 1, SIDE, dtype=np.float32)


def correlations(first: NDArray[Any], second: NDArray[Any]) -> Floats:
    """(n, 64, 64) and (n, 64, 64) of ranks -> (n,): correlation of the fine structure after alignment, from -1 to 1."""
    first, second = (images.astype(np.float32) / np.float32(127) for images in (first, second))
    n = len(first)
    fit = np.tile(np.array([0, 1, 0, 1], np.float32), (n, 1))  # shift and scale of rows, of columns
    for blur, steps in zip(_BLURS, _STEPS, strict=True):
        kernel = _blurring(blur)
        target, moving = kernel @ first @ kernel, kernel @ second @ kernel
        for _ in range(steps):
            fit = np.clip(fit + _step(target, moving, fit), *_bounds())
    low = _blurring(_FINE)
    fine = [images - low @ images @ low for images in (first, second)]
    rows, columns = _sampling(fit[:, 0], fit[:, 1]), _sampling(fit[:, 2], fit[:, 3])
    inside = (rows.sum(2)[:, :, None] > 0.99) & (columns.sum(2)[:, None] > 0.99)
    inside[:, :_EDGE] = inside[:, -_EDGE:] = inside[:, :, :_EDGE] = inside[:, :, -_EDGE:] = False
    even = _blurring(_EVEN)
    fine = [images / np.sqrt(np.maximum(even @ images**2 @ even, 1e-4)) for images in fine]
    return _correlation(fine[0], rows @ fine[1] @ columns.transpose(0, 2, 1), inside)


def _bounds() -> tuple[Floats, Floats]:
    identity = np.array([0, 1, 0, 1], np.float32)
    return identity - _MOST, identity + _MOST


def _step(target: Floats, moving: Floats, fit: Floats) -> Floats:
    """One Gauss-Newton step (n, 4); contrast and brightness are fitted along with it."""
    rows, columns = _sampling(fit[:, 0], fit[:, 1]), _sampling(fit[:, 2], fit[:, 3])
    warped = rows @ moving @ columns.transpose(0, 2, 1)
    inside = ((rows.sum(2)[:, :, None] > 0.5) & (columns.sum(2)[:, None] > 0.5)).astype(np.float32)
    down, across = np.gradient(warped, 2 / (SIDE - 1), axis=(1, 2))
    y, x = _GRID[:, None], _GRID[None, :]
    parts = [down, down * y, across, across * x, warped, np.ones_like(warped)]
    design = np.stack([part * inside for part in parts], axis=1).reshape(len(fit), len(parts), -1)
    difference = ((target - warped) * inside).reshape(len(fit), -1, 1)
    normal = design @ design.transpose(0, 2, 1)
    normal += (
        np.eye(len(parts), dtype=np.float32) * (1e-3 * np.trace(normal, axis1=1, axis2=2) + 1e-6)[:, None, None] / 6
    )
    return np.linalg.solve(normal, design @ difference)[:, :4, 0].astype(np.float32)


def _sampling(shift: Floats, scale: Floats) -> Floats:
    """(n,) and (n,) -> (n, 64, 64): linear interpolation at ``shift + scale * grid``; rows of zeros outside."""
    places = ((shift[:, None] + scale[:, None] * _GRID) + 1) / 2 * (SIDE - 1)
    return np.maximum(0, 1 - np.abs(places[:, :, None] - np.arange(SIDE, dtype=np.float32))).astype(np.float32)


@cache
def _blurring(width: float) -> Floats:
    """(64, 64): a Gaussian blur along one axis, normalised at the edges; symmetric enough to serve on both sides."""
    places = np.arange(SIDE)
    kernel = np.exp(-((places[:, None] - places) ** 2) / (2 * width**2))
    total = kernel.sum(1)
    return (kernel / np.sqrt(total[:, None] * total[None])).astype(np.float32)


def _correlation(first: Floats, second: Floats, inside: NDArray[np.bool_]) -> Floats:
    count = np.maximum(inside.sum((1, 2)), 1)[:, None, None]
    centred = [
        np.where(inside, image - (image * inside).sum((1, 2), keepdims=True) / count, 0) for image in (first, second)
    ]
    products = (centred[0] * centred[1]).sum((1, 2))
    sizes = np.sqrt((centred[0] ** 2).sum((1, 2)) * (centred[1] ** 2).sum((1, 2)))
    return np.where(sizes > 1e-6, products / np.maximum(sizes, 1e-6), 0).astype(np.float32)
