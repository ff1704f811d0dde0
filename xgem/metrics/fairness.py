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
    """A subgroup's measure over n test images; None, with the ``reason``, where it cannot be given."""

    name: str
    n: int
    value: Sampled | None
    reason: str = ""


@dataclass(frozen=True)
class Gap:
    """Of the groups of one axis: the best and the worst, their difference, and what chance would make of it.

    ``value``: highest minus lowest. ``chance``: the same with the test images dealt to groups of these sizes at
    random; ``p``: how often that is at least as large.
    """

    best: str
    worst: str
    value: Sampled
    chance: Sampled
    p: float


def measured(
    measure: MeasureName, scores: Array, labels: Array, weights: Array, threshold: float | Array = 0.5
) -> Array:
    """A measure of (n, classes) scores, or its mean over (runs, n, classes), on b resamplings: (b,)."""
    from xgem.metrics.classification import macro_auc_draws, weighted_f1_draws

    runs = scores if scores.ndim == 3 else scores[None]
    if measure == "weighted F1":
        return np.mean([weighted_f1_draws(one, labels, weights, threshold) for one in runs], axis=0)
    return np.mean([macro_auc_draws(one, labels, weights) for one in runs], axis=0)


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
        labels: (n, classes) of 1, 0, NaN (no say).
        threshold: of the F1, one or one a class.
        min_n: smaller groups are not computed.

    Classes of which a group has no positive (F1), or not both kinds (AUROC), have no part in its number.
    """
    found: list[Group] = []
    for name, rows in groups.items():
        if len(rows) < min_n:
            found.append(Group(name, len(rows), None, f"n {len(rows)}, below {min_n}"))
            continue
        values = measured(measure, scores[..., rows, :], labels[rows], bootstrap.weights[:, rows], threshold)
        if not np.isfinite(values[0]):
            found.append(Group(name, len(rows), None, "no class of its images can be tested"))
            continue
        found.append(Group(name, len(rows), Sampled(float(values[0]), values[1:], len(rows))))
    return found


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

    The largest difference of several noisy numbers is never 0, in a resampling still larger than in the sample:
    draws are shifted onto the value, and ``chance`` says what equal groups of these sizes would show.
    """
    known = [(one.name, one.value) for one in groups if one.value is not None]
    if len(known) < 2:
        return None
    values = [one.value for _, one in known]
    draws = np.stack([one.draws for _, one in known])
    members = np.concatenate([rows[name] for name, _ in known])
    found = Sampled(max(values) - min(values), draws.max(axis=0) - draws.min(axis=0), len(members)).recentred()
    ends = np.cumsum([len(rows[name]) for name, _ in known])[:-1]
    rng = np.random.default_rng([seed, 21])
    dealt = np.empty(permutations)
    for k in range(permutations):
        parts = np.split(rng.permutation(members), ends)
        each = [
            measured(measure, scores[..., part, :], labels[part], np.ones((1, len(part))), threshold)[0]
            for part in parts
        ]
        dealt[k] = np.nanmax(each) - np.nanmin(each)
    p = (1 + int((dealt >= found.value - 1e-12).sum())) / (1 + permutations)
    best, worst = known[int(np.argmax(values))][0], known[int(np.argmin(values))][0]
    return Gap(best, worst, found, Sampled(float(dealt.mean()), dealt, len(members)), p)


def group_correlation(real: Sequence[Group], synthetic: Sequence[Group]) -> Sampled | None:
    """Pearson's r of a measure on real and on synthetic test images, over the subgroups that both have (ChexGen).

    ``n`` is the number of subgroups; None with fewer than three, where r could only be 1 or -1.
    """
    others = {one.name: one.value for one in synthetic if one.value is not None}
    pairs = [(one.value, others[one.name]) for one in real if one.value is not None and one.name in others]
    if len(pairs) < 3:
        return None
    first = np.array([[a.value, *a.draws] for a, _ in pairs])
    second = np.array([[b.value, *b.draws] for _, b in pairs])
    x, y = first - first.mean(axis=0), second - second.mean(axis=0)
    spread = np.sqrt((x**2).sum(axis=0) * (y**2).sum(axis=0))
    r = np.divide((x * y).sum(axis=0), spread, out=np.full(spread.shape, np.nan), where=spread > 1e-12)
    return Sampled(float(r[0]), r[1:], len(pairs))
