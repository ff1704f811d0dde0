"""Does an output depend on its input more than on its seed? Samples of one study against samples of different studies.

Samples of different studies have different noise: the seeds are nested in the studies, not crossed with them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from xgem.metrics.bootstrap import Array, Bootstrap, Comparison, Sampled, average
from xgem.types import InputError


def intraclass_correlation(vectors: Array, bootstrap: Bootstrap) -> Sampled:
    """Share of the variance of outputs that lies between studies, the rest lying between seeds.

    ICC(1) of the one-way random effects model, (MSB - MSW) / (MSB + (k - 1) MSW), with MSB and MSW the mean squares
    between and within studies (Shrout & Fleiss 1979, ICC(1,1)), each summed over the dimensions of the vectors as in
    the I2C2 of Shou et al. 2013. 1 where the seed changes nothing, 0 in the mean where the input does not, and slightly
    negative by chance, at least -1 / (k - 1). Whole studies are resampled; two copies of one study in a resampling do
    not count as a pair of different studies.

    Args:
        vectors: (k, n, d) of k samples of n studies.

    Returns:
        NaN where all vectors are equal.

    Raises:
        InputError: fewer than two samples, or another number of studies than the bootstrap's.
    """
    _check(vectors, bootstrap)
    count, n, _ = vectors.shape
    centred = np.asarray(vectors, dtype=np.float64) - vectors.mean(axis=(0, 1))
    means = centred.mean(axis=0)  # (n, d)
    w, within = bootstrap.weights, ((centred - means) ** 2).sum(axis=(0, 2)) / (count - 1)  # (1 + draws, n), (n,)
    # Variance of the studies' means, over pairs of different studies
    pairs = n**2 - (w**2).sum(axis=1)
    spread = n * (w @ (means**2).sum(axis=1)) - ((w @ means) ** 2).sum(axis=1)
    mean_square = count * np.divide(spread, pairs, out=np.full(len(w), np.nan), where=pairs > 0)
    residual = w @ within / n
    total = mean_square + (count - 1) * residual
    known = total > 1e-12 * max(float((vectors**2).sum(axis=2).mean()), 1e-300)
    return bootstrap.sampled(np.divide(mean_square - residual, total, out=np.full(len(w), np.nan), where=known))


def jaccard(first: NDArray[np.bool_], second: NDArray[np.bool_]) -> Array:
    """Jaccard index (n, m) of label sets (n, classes) and (m, classes); 1 for two empty sets."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    shared = a @ b.T
    either = a.sum(axis=1)[:, None] + b.sum(axis=1)[None] - shared
    return np.divide(shared, either, out=np.ones_like(shared), where=either > 0)


def compare_jaccard(labels: NDArray[np.bool_], bootstrap: Bootstrap) -> Comparison:
    """Mean Jaccard index of the label sets of two samples of one study, and of the same sample of two studies.

    Args:
        labels: (k, n, classes) of k samples of n studies.

    Raises:
        InputError: as :func:`intraclass_correlation`.
    """
    _check(labels, bootstrap)
    count = len(labels)
    same = [np.diag(jaccard(labels[a], labels[b])) for a in range(count) for b in range(a)]
    different = [bootstrap.matched_and_shuffled(jaccard(sample, sample)).shuffled for sample in labels]
    return Comparison(bootstrap.mean(np.mean(same, axis=0)), average(different))


def _check(samples: NDArray, bootstrap: Bootstrap) -> None:
    if samples.ndim != 3 or len(samples) < 2 or samples.shape[1] != bootstrap.n:
        expected = f"(k, {bootstrap.n}, d) of at least 2 samples"
        raise InputError(f"samples of shape {samples.shape}: expected {expected}")
