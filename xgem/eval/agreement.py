"""Agreement of generated pictures with real ones, as (n, n) score matrices.

``scores[i, j]`` rates the output made from study j's prompts against study i, so that the diagonal is matched and
all else is the shuffled control (:meth:`xgem.eval.statistics.Bootstrap.matched_and_shuffled`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import rankdata

from xgem.eval.statistics import Array, Bootstrap, Comparison, Sampled, derangements
from xgem.types import InputError

GRID = 16
"""Side of the coarse pictures that pixel measures look at."""
_BLOCK = 4_000_000  # numbers at once: resamplings that fit in little memory


def coarse(pictures: NDArray[np.uint8]) -> Array:
    """(n, s, s) -> (n, 256): mean over a 16 x 16 grid, each picture standardised to mean 0 and variance 1."""
    n, height, width = pictures.shape
    if height % GRID or width % GRID:
        raise InputError(f"pictures of {height} x {width}: expected sides divisible by {GRID}")
    blocks = pictures.reshape(n, GRID, height // GRID, GRID, width // GRID).astype(np.float64)
    flat = blocks.mean(axis=(2, 4)).reshape(n, -1)
    return standardised(flat)


def standardised(rows: Array) -> Array:
    """Each row to mean 0 and variance 1; constant rows become zeros."""
    centred = rows - rows.mean(axis=1, keepdims=True)
    spread = centred.std(axis=1, keepdims=True)
    return np.divide(centred, spread, out=np.zeros_like(centred), where=spread > 1e-9)


def cosine(first: Array, second: Array) -> Array:
    """(n, d), (m, d) -> (n, m) cosines."""
    return _unit(first) @ _unit(second).T


def _unit(rows: Array) -> Array:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


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
    """Agreement of a classifier's logits on real (n, k) and generated (n, k) pictures.

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


def auc(scores: Array, labels: Array, bootstrap: Bootstrap) -> Sampled:
    """Area under the ROC curve of (n,) scores for (n,) labels of 1, 0 or NaN (left out); ties count half.

    Both may be (n, classes): all entries are then pooled (micro average), and studies are resampled whole.
    """
    positives, negatives = int((labels == 1).sum()), int((labels == 0).sum())
    if not positives or not negatives:
        raise InputError(f"{positives} positives and {negatives} negatives: an AUC needs both")
    return bootstrap.sampled(auc_draws(scores, labels, bootstrap.weights))


def auc_draws(scores: Array, labels: Array, weights: Array) -> Array:
    """Area under the ROC curve on each of b resamplings, (b,); NaN where one has a single class. Ties count half.

    Args:
        scores, labels: (n,) or (n, classes); all columns of the latter are pooled (micro average).
        weights: (b, n).
    """
    known = np.isfinite(labels)
    cases, values, truth = np.nonzero(known)[0], scores[known], labels[known]
    result = np.full(len(weights), np.nan)
    if not len(values):
        return result
    order = np.argsort(values, kind="stable")
    cases, values, truth = cases[order], values[order], truth[order]
    starts = np.flatnonzero(np.r_[True, values[1:] != values[:-1]])
    block = max(1, _BLOCK // len(values))
    for first in range(0, len(weights), block):
        own = weights[first : first + block, cases]
        positive = np.add.reduceat(own * truth, starts, axis=1)
        negative = np.add.reduceat(own * (1 - truth), starts, axis=1)
        wins = (positive * (negative.cumsum(axis=1) - negative / 2)).sum(axis=1)
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        result[first : first + block] = np.divide(wins, pairs, out=np.full(len(own), np.nan), where=pairs > 0)
    return result


def compare_auc(
    scores: Array, labels: Array, bootstrap: Bootstrap, *, seed: int = 0, permutations: int = 10
) -> Comparison:
    """AUC beside that of outputs dealt to other studies (mean over derangements of the annotated studies)."""
    known = np.flatnonzero(np.isfinite(labels).reshape(len(labels), -1).any(axis=1))
    dealt: list[Sampled] = []
    for order in derangements(len(known), permutations, seed):
        moved = scores.copy()
        moved[known] = scores[known[order]]
        dealt.append(auc(moved, labels, bootstrap))
    return Comparison(auc(scores, labels, bootstrap), average(dealt))


def correlation(first: Array, second: Array, bootstrap: Bootstrap, *, ranks: bool = False) -> Sampled:
    """Pearson's r of two (n,) arrays, of their ranks with ``ranks`` (Spearman's); NaN where one is constant."""
    w = bootstrap.weights
    x, y = (_weighted_ranks(one, w) if ranks else one for one in (first, second))
    share = w / bootstrap.n
    x, y = x - (share * x).sum(axis=1, keepdims=True), y - (share * y).sum(axis=1, keepdims=True)
    spread = np.sqrt((share * x**2).sum(axis=1) * (share * y**2).sum(axis=1))
    top = (share * x * y).sum(axis=1)
    return bootstrap.sampled(np.divide(top, spread, out=np.full(len(w), np.nan), where=spread > 1e-12))


def _weighted_ranks(values: Array, weights: Array) -> Array:
    """(draws, n) ranks within each resampling; ties share their mean."""
    below = (values[None] < values[:, None]) + 0.5 * (values[None] == values[:, None])
    return weights @ below.T


def compare_correlation(
    asked: Array, found: Array, bootstrap: Bootstrap, *, ranks: bool = False, seed: int = 0, permutations: int = 10
) -> Comparison:
    """:func:`correlation` beside that of outputs dealt to other studies (mean over derangements)."""
    orders = derangements(bootstrap.n, permutations, seed)
    dealt = [correlation(asked, found[order], bootstrap, ranks=ranks) for order in orders]
    return Comparison(correlation(asked, found, bootstrap, ranks=ranks), average(dealt))


def average(parts: list[Sampled]) -> Sampled:
    """Mean of measures that share their bootstrap; a part that a draw does not define is left out of that draw."""
    if not parts:
        raise InputError("no measures to average: give at least one")
    draws = np.stack([part.draws for part in parts])
    count = np.isfinite(draws).sum(axis=0)
    total = np.nansum(draws, axis=0)
    mean = np.divide(total, count, out=np.full(len(total), np.nan), where=count > 0)
    return Sampled(float(np.mean([part.value for part in parts])), mean, parts[0].n)
