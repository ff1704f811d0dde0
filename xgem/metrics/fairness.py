"""Performance by subgroup, and gaps between subgroups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

from xgem.metrics.bootstrap import Array, Bootstrap, Sampled

MIN_N: Final = 20


MeasureName = Literal["weighted F1", "AUROC macro"]


MEASURES: Final[tuple[MeasureName, ...]] = ("weighted F1", "AUROC macro")


@dataclass(frozen=True)
class Group:
    """A subgroup's measure over n test images; None, with the ``reason``, where it cannot be computed."""

    name: str
    n: int
    value: Sampled | None
    reason: str = ""


@dataclass(frozen=True)
class Gap:
    """The best and the worst group of one attribute, their difference, and the difference expected by chance.

    ``value``: highest minus lowest. ``chance``: the same with the test images assigned at random to groups of these
    sizes; ``p``: how often that is at least as large.
    """

    best: str
    worst: str
    value: Sampled
    chance: Sampled
    p: float


def measured(
    measure: MeasureName, scores: Array, labels: Array, weights: Array, threshold: float | Array = 0.5
) -> Array:
    """A measure of (n, classes) scores, or its mean over the runs of (runs, n, classes), on b resamplings: (b,)."""
    from xgem.metrics.classification import macro_auc_draws, weighted_f1_draws

    runs = scores if scores.ndim == 3 else scores[None]
    if measure == "weighted F1":
        return np.mean([weighted_f1_draws(run, labels, weights, threshold) for run in runs], axis=0)
    return np.mean([macro_auc_draws(run, labels, weights) for run in runs], axis=0)


def by_group(
    measure: MeasureName,
    scores: Array,
    labels: Array,
    groups: Mapping[str, NDArray[np.int64]],
    bootstrap: Bootstrap,
    *,
    threshold: float | Array = 0.5,
    min_n: int = MIN_N,
) -> list[Group]:
    """A measure of each subgroup, on the same resamplings of all test images, so that differences are paired.

    Args:
        scores: (n, classes) or (runs, n, classes) probabilities.
        labels: (n, classes) of 1, 0, NaN (unknown).
        threshold: for F1; one for all classes, or one per class.
        min_n: smaller groups are not computed.

    Classes without positives in a group (F1), or without both positives and negatives (AUROC), do not enter its value.
    """
    results: list[Group] = []
    for name, rows in groups.items():
        if len(rows) < min_n:
            results.append(Group(name, len(rows), None, f"n {len(rows)}, below {min_n}"))
            continue
        values = measured(measure, scores[..., rows, :], labels[rows], bootstrap.weights[:, rows], threshold)
        if not np.isfinite(values[0]):
            results.append(Group(name, len(rows), None, "no class of its images can be tested"))
            continue
        results.append(Group(name, len(rows), Sampled(float(values[0]), values[1:], len(rows))))
    return results


def gap(
    measure: MeasureName,
    groups: Sequence[Group],
    scores: Array,
    labels: Array,
    rows: Mapping[str, NDArray[np.int64]],
    *,
    threshold: float | Array = 0.5,
    permutations: int = 200,
    seed: int = 0,
) -> Gap | None:
    """The gap between the best and the worst of the computed groups (ChexGen); None with fewer than two.

    The range of several noisy numbers is biased upwards, in a resampling even more than in the sample: draws are
    shifted onto the value, and ``chance`` is the gap that groups of these sizes show without any true difference.
    """
    # The observed gap, on every resampling
    known = [(group.name, group.value) for group in groups if group.value is not None]
    if len(known) < 2:
        return None
    values = [sampled.value for _, sampled in known]
    draws = np.stack([sampled.draws for _, sampled in known])  # (groups, draws)
    members = np.concatenate([rows[name] for name, _ in known])
    observed = Sampled(max(values) - min(values), draws.max(axis=0) - draws.min(axis=0), len(members)).recentred()
    # The gap between random groups of the same sizes
    ends = np.cumsum([len(rows[name]) for name, _ in known])[:-1]
    rng = np.random.default_rng([seed, 21])
    random_gaps = np.empty(permutations)
    for k in range(permutations):
        parts = np.split(rng.permutation(members), ends)
        part_values = [
            measured(measure, scores[..., part, :], labels[part], np.ones((1, len(part))), threshold)[0]
            for part in parts
        ]
        random_gaps[k] = np.nanmax(part_values) - np.nanmin(part_values)
    p = (1 + int((random_gaps >= observed.value - 1e-12).sum())) / (1 + permutations)
    best, worst = known[int(np.argmax(values))][0], known[int(np.argmin(values))][0]
    return Gap(best, worst, observed, Sampled(float(random_gaps.mean()), random_gaps, len(members)), p)


def group_correlation(real: Sequence[Group], synthetic: Sequence[Group]) -> Sampled | None:
    """Pearson's r of a measure on real and on synthetic test images, over the subgroups that both have (ChexGen).

    ``n`` is the number of subgroups; None with fewer than three, where r could only be 1 or -1.
    """
    others = {group.name: group.value for group in synthetic if group.value is not None}
    pairs = [(group.value, others[group.name]) for group in real if group.value is not None and group.name in others]
    if len(pairs) < 3:
        return None
    first = np.array([[a.value, *a.draws] for a, _ in pairs])  # (subgroups, 1 + draws)
    second = np.array([[b.value, *b.draws] for _, b in pairs])
    x, y = first - first.mean(axis=0), second - second.mean(axis=0)
    spread = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    r = np.divide((x * y).sum(axis=0), spread, out=np.full(spread.shape, np.nan), where=spread > 1e-12)
    return Sampled(float(r[0]), r[1:], len(pairs))
