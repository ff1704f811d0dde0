"""Memorisation: distances of generated images to the training images, compared with those of unseen real images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from xgem.metrics.bootstrap import Array, Estimate, Sampled
from xgem.metrics.privacy import estimate
from xgem.types import InputError


@dataclass(frozen=True)
class Memorisation:
    """Distances to the training images, of generated against held-out real images, ``n`` of each.

    Attributes:
        nearer: probability that a generated image is nearer to the training images than a held-out one; 0.5 if equal.
        share: share of generated images nearer than ``threshold``, the ``quantile`` of the held-out distances.
        p_shift: one-sided Mann-Whitney test that the generated images as a whole are nearer.
        p_near: one-sided exact precedence test (Nelson 1963) of ``share``: detects a few copies that do not shift the
            distribution as a whole.
        p_value: of both tests together (Bonferroni).
    """

    n: int
    nearer: Estimate
    share: Estimate
    quantile: float
    threshold: float
    p_shift: float
    p_near: float

    @property
    def p_value(self) -> float:
        return min(1.0, 2 * min(self.p_shift, self.p_near))


def memorisation_test(
    generated: Array, held_out: Array, *, quantile: float = 0.01, draws: int = 1000, seed: int = 0
) -> Memorisation:
    """Whether generated images are nearer to the training images than unseen real images are, at equal n.

    Args:
        generated, held_out: (n,) and (m,) distances to the nearest training image; the larger set is subsampled at
            random (by ``seed``) to the size of the smaller one.
        quantile: of the held-out distances, below which a distance counts as near.

    Raises:
        InputError: fewer than 8 distances on a side, or a quantile outside (0, 1).
    """
    from scipy.stats import mannwhitneyu, nhypergeom

    n = min(len(generated), len(held_out))
    if n < 8 or not 0 < quantile < 1:
        raise InputError(f"{n} distances per side, quantile {quantile}: expected at least 8, and a quantile in (0, 1)")
    # Equal numbers of distances
    rng = np.random.default_rng(seed)
    g, h = (np.asarray(side, np.float64)[rng.permutation(len(side))[:n]] for side in (generated, held_out))
    rank = max(1, math.ceil(quantile * n))

    def near(ours: Array, others: Array) -> float:
        return float(np.mean(ours < np.partition(others, rank - 1)[rank - 1]))

    def nearer(ours: Array, others: Array) -> float:
        others = np.sort(others)
        below = np.searchsorted(others, ours, "left") + np.searchsorted(others, ours, "right")
        return 1 - float(below.mean()) / (2 * n)

    # Both statistics on the sample and on bootstrap draws of both sides
    pairs = [(g[rng.integers(0, n, n)], h[rng.integers(0, n, n)]) for _ in range(draws)]
    estimates = [
        Sampled(measure(g, h), np.array([measure(*pair) for pair in pairs]), n).estimate() for measure in (nearer, near)
    ]
    count = round(near(g, h) * n)
    return Memorisation(
        n=n,
        nearer=estimates[0],
        share=estimates[1],
        quantile=quantile,
        threshold=float(np.sort(h)[rank - 1]),
        p_shift=float(mannwhitneyu(g, h, alternative="less").pvalue),
        # In the sorted pool of 2n, the number of generated images before the held-out one of this rank
        p_near=float(nhypergeom(2 * n, n, rank).sf(count - 1)),
    )


def authenticity(distances: Array, neighbours: Array, **options: Any) -> Estimate:
    """Share of generated images that are not noisy copies (Alaa et al. 2022, section 3.3), 0 to 1.

    Args:
        distances: (n,) to the nearest training image.
        neighbours: (n,) from that training image to its own nearest neighbour among the others.
        options: as :func:`estimate`.
    """
    return estimate((np.asarray(distances) > np.asarray(neighbours)).astype(np.float64), **options)
