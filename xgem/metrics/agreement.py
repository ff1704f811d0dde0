"""Agreement of generated images with real ones, as (n, n) score matrices.

``scores[i, j]`` rates the output generated from study j's prompts against study i: the diagonal holds the matched
pairs, the other entries are the shuffled control (:meth:`xgem.metrics.bootstrap.Bootstrap.matched_and_shuffled`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from xgem.metrics.bootstrap import Array
from xgem.types import InputError

GRID = 16
"""Side in pixels of the coarse images that pixel measures compare."""


def coarse(images: NDArray[np.uint8]) -> Array:
    """(n, s, s) -> (n, 256): means over a 16 x 16 grid, each image standardised to mean 0 and variance 1."""
    n, height, width = images.shape
    if height % GRID or width % GRID:
        raise InputError(f"images of {height} x {width}: expected sides divisible by {GRID}")
    blocks = images.reshape(n, GRID, height // GRID, GRID, width // GRID).astype(np.float64)  # (n, row, h, column, w)
    flat = blocks.mean(axis=(2, 4)).reshape(n, -1)  # (n, GRID * GRID)
    return standardised(flat)


def standardised(rows: Array) -> Array:
    """Standardise each row to mean 0 and variance 1; constant rows become zeros."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-9)


def cosine(first: Array, second: Array) -> Array:
    """(n, d), (m, d) -> (n, m) cosine similarities; 0 with a zero vector, such as that of a constant image."""
    return directions(first) @ directions(second).T


def directions(rows: Array) -> Array:
    """(n, d) vectors, each divided by its length; a zero vector stays zero."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def own_rank_scores(target: Array, output: Array) -> Array:
    """1 - own-patient rank: the share of other studies' real targets that are farther from the output than its own.

    Args:
        target, output: (n, d) features of real targets and of outputs; the distance is Euclidean.

    Returns:
        (n, n): entry (i, j) treats target i as output j's own. Chance is 0.5; 1 where the own target is the nearest;
        ties count half.
    """
    distance = cdist(output, target)  # (output j, target i)
    rank = (rankdata(distance, axis=1) - 1) / (len(target) - 1)  # (output j, target i)
    return 1 - rank.T


def logit_scores(real: Array, generated: Array) -> Array:
    """Agreement of a classifier's logits on real (n, k) and generated (n, k) images, (n, n).

    Each class is standardised within each set, so the mean of the diagonal is Pearson's r, averaged over classes.
    """
    return standardised(real.T).T @ standardised(generated.T) / real.shape[1]


def ridge_prediction(prompt: Array, prompt_train: Array, target_train: Array) -> Array:
    """The linear baseline that a generator has to beat: ridge regression from the prompt's coarse pixels.

    The penalty is chosen on the training studies by leave-one-out cross-validation. Returns standardised (n, d)
    predictions of the target's coarse pixels.
    """
    from sklearn.linear_model import RidgeCV

    model: Any = RidgeCV(alphas=np.logspace(0, 5, 11))
    model.fit(prompt_train, target_train)
    return standardised(np.asarray(model.predict(prompt), dtype=np.float64))
