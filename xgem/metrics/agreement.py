"""Agreement of generated images with real ones, as (n, n) score matrices.

``scores[i, j]`` rates the output made from study j's prompts against study i, so that the diagonal is matched and
all else is the shuffled control (:meth:`xgem.metrics.bootstrap.Bootstrap.matched_and_shuffled`).
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
"""Side of the coarse images that pixel measures look at."""


_BLOCK = 4_000_000  # numbers at once: resamplings that fit in little memory


def coarse(images: NDArray[np.uint8]) -> Array:
    """(n, s, s) -> (n, 256): mean over a 16 x 16 grid, each image standardised to mean 0 and variance 1."""
    n, height, width = images.shape
    if height % GRID or width % GRID:
        raise InputError(f"images of {height} x {width}: expected sides divisible by {GRID}")
    blocks = images.reshape(n, GRID, height // GRID, GRID, width // GRID).astype(np.float64)
    flat = blocks.mean(axis=(2, 4)).reshape(n, -1)
    return standardised(flat)


def standardised(rows: Array) -> Array:
    """Each row to mean 0 and variance 1; constant rows become zeros."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-9)


def cosine(first: Array, second: Array) -> Array:
    """(n, d), (m, d) -> (n, m) cosines; those of a zero vector, such as a constant image's, are 0."""
    a, b = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (first, second))
    return a @ b.T


def own_rank_scores(target: Array, output: Array) -> Array:
    """1 - own-patient rank: the share of other studies' real targets that are farther from the output than the own.

    Args:
        target, output: (n, d) of real targets and outputs; the distance is Euclidean.

    Returns:
        (n, n): entry (i, j) takes target i for output j's own. Chance 0.5, 1 where the own target is the closest;
        ties count half.
    """
    distance = cdist(output, target)
    rank = (rankdata(distance, axis=1) - 1) / (len(target) - 1)  # (output j, target i)
    return 1 - rank.T


def logit_scores(real: Array, generated: Array) -> Array:
    """Agreement of a classifier's logits on real (n, k) and generated (n, k) images.

    Each class is standardised over each set, so the mean of the diagonal is Pearson's r, averaged over classes.
    """
    return standardised(real.T).T @ standardised(generated.T) / real.shape[1]


def ridge_prediction(prompt: Array, prompt_train: Array, target_train: Array) -> Array:
    """The straight line that a generator has to beat: ridge regression from the prompt's coarse pixels to the target's.

    The penalty is chosen on the training studies by leave-one-out cross-validation; returns (n, d) predictions.
    """
    from sklearn.linear_model import RidgeCV

    model: Any = RidgeCV(alphas=np.logspace(0, 5, 11))
    model.fit(prompt_train, target_train)
    return standardised(np.asarray(model.predict(prompt), dtype=np.float64))
