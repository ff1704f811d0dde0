"""Radiomic features of a radiograph, and the Frechet distance between sets of them (Konz, Osuala et al. 2025, FRD v1).

The 385 features are those that pyradiomics 3.0.1 gives for a 2-D image with FRD's settings: 77 of first order and of
texture (IBSI), of the image and of its four wavelet bands. FRD also asks for Laplacians of Gaussians, which
pyradiomics leaves out of images of a single slice.

Settings: grey levels standardised and multiplied by 100, pixels of twice the size by cubic B-splines, bins of width 5,
shift of 300 for energies, the whole image as region.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.metrics.bootstrap import Array, Estimate
from xgem.metrics.fidelity import frechet_distance
from xgem.types import InputError, ShapeError

SMALLEST: Final = 16
_SCALE: Final = 100.0
_SPACING: Final = 2
_BIN: Final = 5.0
_SHIFT: Final = 300.0
_WAVELET: Final = "coif1"
_BANDS: Final = ("original", "wavelet-LH", "wavelet-HL", "wavelet-HH", "wavelet-LL")
_DIRECTIONS: Final = ((0, 1), (1, 0), (1, 1), (1, -1))
_EPS: Final = float(np.spacing(1))
Levels = NDArray[np.int64]


def radiomics(image: NDArray[Any]) -> dict[str, float]:
    """The features of one image by name, ``original_firstorder_Mean`` and so on.

    Args:
        image: (h, w) grey levels, at least 16 pixels a side.

    Raises:
        ShapeError: another shape. InputError: an image of one grey level, or values that are not finite.
    """
    if image.ndim != 2 or min(image.shape) < SMALLEST:
        raise ShapeError(f"image of shape {image.shape}: expected (h, w), at least {SMALLEST} pixels a side")
    pixels = np.asarray(image, dtype=np.float64)
    deviation = float(pixels.std(ddof=1))
    if not np.isfinite(deviation) or deviation == 0:
        raise InputError(f"image with a standard deviation of {deviation:g}: expected finite, different grey levels")
    features: dict[str, float] = {}
    region = tuple(slice(side // _SPACING) for side in pixels.shape)
    for name, whole in _bands(_resampled((pixels - pixels.mean()) / deviation * _SCALE)).items():
        band = whole[region]
        levels = _binned(band)
        for kind, values in (
            ("firstorder", _first_order(band, levels)),
            ("glcm", _cooccurrence(levels)),
            ("glrlm", _runs(levels)),
            ("glszm", _zones(levels)),
            ("ngtdm", _neighbourhood(levels)),
        ):
            features |= {f"{name}_{kind}_{feature}": float(value) for feature, value in values.items()}
    return features


def _resampled(pixels: Array) -> Array:
    """On a grid of twice the pixel size, by cubic B-splines; the first sample lies between the first two pixels.

    A side of an odd number of pixels has a last sample outside of the image: 0, and in no feature but by the wavelets.
    """
    from scipy.ndimage import map_coordinates

    rows, columns = (_SPACING * np.arange(-(-side // _SPACING)) + 0.5 for side in pixels.shape)
    sampled = map_coordinates(pixels, np.meshgrid(rows, columns, indexing="ij"), order=3, mode="mirror")
    sampled[rows > len(pixels) - 1] = 0
    sampled[:, columns > pixels.shape[1] - 1] = 0
    return sampled


def _bands(pixels: Array) -> dict[str, Array]:
    """The image and its stationary wavelet transform of one level; the first letter is of the columns' axis."""
    import pywt

    height, width = pixels.shape
    even = np.pad(pixels, ((0, height % 2), (0, width % 2)), "wrap")
    parts: Mapping[str, Array] = pywt.swtn(even, _WAVELET, level=1, axes=(1, 0))[0]
    named = {f"wavelet-{key.replace('a', 'L').replace('d', 'H')}": part for key, part in parts.items()}
    return {name: pixels if name == "original" else named[name][:height, :width] for name in _BANDS}


def _binned(band: Array) -> Levels:
    """Levels from 1: bins of a fixed width whose edges are multiples of it."""
    return (np.floor(band / _BIN) - np.floor(band.min() / _BIN)).astype(np.int64) + 1


def _entropy(p: NDArray[Any], axis: Any = None) -> Array:
    return -(p * np.log2(p + _EPS)).sum(axis=axis)


def _first_order(band: Array, levels: Levels) -> dict[str, Any]:
    x = band.ravel()
    p = np.bincount(levels.ravel())[1:] / x.size
    low, high, lower, upper = np.percentile(x, (10, 90, 25, 75))
    core = x[(x >= low) & (x <= high)]
    mean, centred = x.mean(), x - x.mean()
    variance = (centred**2).mean()
    energy = ((x + _SHIFT) ** 2).sum()
    return {
        "10Percentile": low,
        "90Percentile": high,
        "Energy": energy,
        "Entropy": _entropy(p),
        "InterquartileRange": upper - lower,
        "Kurtosis": (centred**4).mean() / variance**2 if variance else 0,
        "Maximum": x.max(),
        "MeanAbsoluteDeviation": np.abs(centred).mean(),
        "Mean": mean,
        "Median": np.median(x),
        "Minimum": x.min(),
        "Range": np.ptp(x),
        "RobustMeanAbsoluteDeviation": np.abs(core - core.mean()).mean(),
        "RootMeanSquared": np.sqrt(energy / x.size),
        "Skewness": (centred**3).mean() / variance**1.5 if variance else 0,
        "TotalEnergy": energy * _SPACING**2,
        "Uniformity": (p**2).sum(),
        "Variance": variance,
    }


def _cooccurrence(levels: Levels) -> dict[str, Any]:
    """Grey level co-occurrence at distance 1, symmetric; the mean over four directions."""
    count = int(levels.max())
    height, width = levels.shape
    matrices: list[Array] = []
    for dy, dx in _DIRECTIONS:
        first = levels[: height - dy, max(0, -dx) : width - max(0, dx)]
        second = levels[dy:, max(0, dx) : width - max(0, -dx)]
        pairs = np.bincount(((first - 1) * count + second - 1).ravel(), minlength=count**2).reshape(count, count)
        matrices.append((pairs + pairs.T) / (2 * first.size))
    p = np.stack(matrices)  # (4, levels, levels)
    i, j = np.meshgrid(np.arange(1.0, count + 1), np.arange(1.0, count + 1), indexing="ij")
    marginal = p.sum(axis=2)  # (4, levels), of both, as p is symmetric
    mean = (marginal * i[:, 0]).sum(axis=1)
    spread = ((i[:, 0] - mean[:, None]) ** 2 * marginal).sum(axis=1)
    both = i + j - 2 * mean[:, None, None]
    sums, differences = (i + j - 2).astype(int).ravel(), np.abs(i - j).astype(int).ravel()
    p_sum = np.stack([np.bincount(sums, one.ravel(), 2 * count - 1) for one in p])
    p_difference = np.stack([np.bincount(differences, one.ravel(), count) for one in p])  # (4, levels)
    k = np.arange(count)
    difference = (p_difference * k).sum(axis=1)
    product = marginal[:, :, None] * marginal[:, None, :]
    hx, hxy = _entropy(marginal, 1), _entropy(p, (1, 2))
    hxy1, hxy2 = -(p * np.log2(product + _EPS)).sum(axis=(1, 2)), _entropy(product, (1, 2))
    covariance = (p * (i * j)).sum(axis=(1, 2)) - mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.where(spread > 0, covariance / spread, 1.0)
        imc1 = np.where(hx > 0, (hxy - hxy1) / hx, 0.0)
    values: dict[str, Array] = {
        "Autocorrelation": (p * (i * j)).sum(axis=(1, 2)),
        "JointAverage": mean,
        "ClusterProminence": (p * both**4).sum(axis=(1, 2)),
        "ClusterShade": (p * both**3).sum(axis=(1, 2)),
        "ClusterTendency": (p * both**2).sum(axis=(1, 2)),
        "Contrast": (p_difference * k**2).sum(axis=1),
        "Correlation": correlation,
        "DifferenceAverage": difference,
        "DifferenceEntropy": _entropy(p_difference, 1),
        "DifferenceVariance": (p_difference * (k - difference[:, None]) ** 2).sum(axis=1),
        "JointEnergy": (p**2).sum(axis=(1, 2)),
        "JointEntropy": hxy,
        "Imc1": imc1,
        "Imc2": np.sqrt(np.maximum(0, 1 - np.exp(-2 * (hxy2 - hxy)))),
        "Idm": (p_difference / (1 + k**2)).sum(axis=1),
        "Idmn": (p_difference / (1 + (k / count) ** 2)).sum(axis=1),
        "Id": (p_difference / (1 + k)).sum(axis=1),
        "Idn": (p_difference / (1 + k / count)).sum(axis=1),
        "InverseVariance": (p_difference[:, 1:] / k[1:] ** 2).sum(axis=1),
        "MaximumProbability": p.max(axis=(1, 2)),
        "SumEntropy": _entropy(p_sum, 1),
        "SumSquares": spread,
    }
    return {name: value.mean() for name, value in values.items()}


def _lines(levels: Levels, direction: tuple[int, int]) -> list[Levels]:
    """The pixels along each line of a direction."""
    if direction == (0, 1):
        return list(levels)
    if direction == (1, 0):
        return list(levels.T)
    turned = levels if direction == (1, 1) else levels[:, ::-1]
    height, width = levels.shape
    return [turned.diagonal(offset) for offset in range(1 - height, width)]


def _runs(levels: Levels) -> dict[str, Any]:
    """Lengths of runs of one grey level; the mean over four directions."""
    found: list[dict[str, float]] = []
    for direction in _DIRECTIONS:
        lines = _lines(levels, direction)
        flat = np.concatenate(lines)
        starts = np.zeros(len(flat), dtype=bool)
        starts[np.cumsum([0, *map(len, lines[:-1])])] = True
        starts[1:] |= flat[1:] != flat[:-1]
        places = np.flatnonzero(starts)
        lengths = np.diff(np.append(places, len(flat)))
        found.append(_emphases(flat[places], lengths, len(flat)))
    names = {
        "Area": "Run", "Zone": "Run", "Small": "Short", "Large": "Long", "SizeRun": "RunLength",
    }  # fmt: skip

    def as_run(name: str) -> str:
        for old, new in names.items():
            name = name.replace(old, new)
        return name

    return {as_run(name): np.mean([one[name] for one in found]) for name in found[0]}


def _zones(levels: Levels) -> dict[str, Any]:
    """Sizes of connected zones of one grey level, diagonals included."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    height, width = levels.shape
    number = np.arange(levels.size).reshape(levels.shape)
    ends: list[tuple[Levels, Levels]] = []
    for dy, dx in _DIRECTIONS:
        first = np.s_[: height - dy, max(0, -dx) : width - max(0, dx)]
        second = np.s_[dy:, max(0, dx) : width - max(0, -dx)]
        equal = levels[first] == levels[second]
        ends.append((number[first][equal], number[second][equal]))
    rows, columns = (np.concatenate(side) for side in zip(*ends, strict=True))
    graph = coo_array((np.ones(len(rows), dtype=np.int8), (rows, columns)), shape=(levels.size, levels.size))
    count, zone = connected_components(graph, directed=False)
    of_zone = np.zeros(count, dtype=np.int64)
    of_zone[zone] = levels.ravel()
    return _emphases(of_zone, np.bincount(zone), levels.size)


def _emphases(levels: Levels, sizes: NDArray[Any], pixels: int) -> dict[str, float]:
    """The 16 features of a matrix of grey levels and sizes (IBSI 3.7 and 3.8), from the list of its zones or runs."""
    i, s, n = levels.astype(np.float64), sizes.astype(np.float64), len(levels)
    by_level = np.bincount(levels).astype(np.float64)
    by_size = np.bincount(sizes).astype(np.float64)
    joint = np.unique(levels * (int(sizes.max()) + 1) + sizes, return_counts=True)[1] / n
    return {
        "GrayLevelNonUniformity": (by_level**2).sum() / n,
        "GrayLevelNonUniformityNormalized": (by_level**2).sum() / n**2,
        "GrayLevelVariance": i.var(),
        "HighGrayLevelZoneEmphasis": (i**2).mean(),
        "LargeAreaEmphasis": (s**2).mean(),
        "LargeAreaHighGrayLevelEmphasis": (s**2 * i**2).mean(),
        "LargeAreaLowGrayLevelEmphasis": (s**2 / i**2).mean(),
        "LowGrayLevelZoneEmphasis": (1 / i**2).mean(),
        "SizeZoneNonUniformity": (by_size**2).sum() / n,
        "SizeZoneNonUniformityNormalized": (by_size**2).sum() / n**2,
        "SmallAreaEmphasis": (1 / s**2).mean(),
        "SmallAreaHighGrayLevelEmphasis": (i**2 / s**2).mean(),
        "SmallAreaLowGrayLevelEmphasis": (1 / (s**2 * i**2)).mean(),
        "ZoneEntropy": float(_entropy(joint)),
        "ZonePercentage": n / pixels,
        "ZoneVariance": s.var(),
    }


def _neighbourhood(levels: Levels) -> dict[str, Any]:
    """Differences of a pixel from the mean of its neighbours at distance 1."""
    from scipy.ndimage import convolve

    around = np.ones((3, 3))
    around[1, 1] = 0
    known = convolve(np.ones(levels.shape), around, mode="constant")
    mean = convolve(levels.astype(np.float64), around, mode="constant") / known
    flat = levels.ravel()
    sums = np.bincount(flat, np.abs(levels - mean).ravel())
    counts = np.bincount(flat)
    i = np.flatnonzero(counts).astype(np.float64)
    p, s = counts[counts > 0] / flat.size, sums[counts > 0]
    ps, n = p * s, len(i)
    total, apart = s.sum(), np.abs(i[:, None] - i[None])
    spread = np.abs((i * p)[:, None] - (i * p)[None]).sum()
    contrast = (p[:, None] * p[None] * apart**2).sum() * total / flat.size / (n * (n - 1)) if n > 1 else 0
    return {
        "Busyness": ps.sum() / spread if spread else 0,
        "Coarseness": 1 / ps.sum() if ps.sum() else 1e6,
        "Complexity": (apart * (ps[:, None] + ps[None]) / (p[:, None] + p[None])).sum() / flat.size,
        "Contrast": contrast,
        "Strength": ((p[:, None] + p[None]) * apart**2).sum() / total if total else 0,
    }


def frechet_radiomics(real: NDArray[Any], generated: NDArray[Any], *, seed: int = 0, draws: int = 30) -> Estimate:
    """Frechet radiomics distance, version 1: the logarithm of the Frechet distance of standardised features.

    Features are standardised by the mean and standard deviation of the real ones; those that do not vary there are left
    out, as in the published code.

    Args:
        real, generated: (n, d) and (m, d) features, as :func:`radiomics` gives them, in any order of the columns.

    Returns:
        The natural logarithm of the distance; lower is better. n is that of the smaller set.

    Raises:
        InputError: fewer than 2 images on a side, no feature that varies, or two equal sets, whose logarithm is
            infinite.
    """
    if min(len(real), len(generated)) < 2:
        raise InputError(f"{len(real)} and {len(generated)} images: a radiomics distance needs at least 2 on each side")
    first, second = np.asarray(real, dtype=np.float64), np.asarray(generated, dtype=np.float64)
    mean, deviation = first.mean(axis=0), first.std(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        first, second = (first - mean) / deviation, (second - mean) / deviation
    kept = np.isfinite(first).all(axis=0) & np.isfinite(second).all(axis=0)
    if not kept.any():
        raise InputError("no radiomic feature varies over the real images: a distance needs different images")
    squared = frechet_distance(first[:, kept], second[:, kept], seed=seed, draws=draws)
    if squared.value <= 0:
        raise InputError("the radiomic features of both sets are equal: the logarithm of their distance is infinite")
    with np.errstate(divide="ignore"):  # a draw of 0
        low, high = (float(np.log(end)) for end in squared.interval)
    return Estimate(float(np.log(squared.value)), low, high, squared.n)
