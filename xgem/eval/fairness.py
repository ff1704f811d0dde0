"""Whether a classifier serves all groups of patients alike: measures by subgroup, gaps, and topping up (ChexGen)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

from xgem.eval.sets import EvalSet, Item
from xgem.eval.statistics import Array, Bootstrap, Sampled
from xgem.types import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from xgem.eval.utility.settings import UtilitySettings

AXES: Final = ("sex", "race", "age")
AGE_BANDS: Final = ((19, 40), (41, 65), (66, 200))
"""Whole years, both ends included (ChexGen, Methods); the last is written 66+."""
MIN_N: Final = 20
MeasureName = Literal["weighted F1", "AUROC macro"]
MEASURES: Final[tuple[MeasureName, ...]] = ("weighted F1", "AUROC macro")


def age_band(age: float | None) -> str | None:
    """``19-40``, ``41-65`` or ``66+``; None for children and where the age is not known."""
    if age is None or not math.isfinite(age):
        return None
    band = next(((low, high) for low, high in AGE_BANDS if low <= math.floor(age) <= high), None)
    if band is None:
        return None
    return f"{band[0]}+" if band == AGE_BANDS[-1] else f"{band[0]}-{band[1]}"


def group_of(item: Item, axes: Sequence[str]) -> str | None:
    """The subgroup of an item on one or several axes, such as ``F, 66+``; None where one is not known."""
    parts = [age_band(item.age) if axis == "age" else getattr(item, axis) for axis in axes]
    return ", ".join(map(str, parts)) if all(parts) else None


def subgroups(
    items: EvalSet, axes: Sequence[str] = AXES, *, intersections: bool = True
) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Rows of every subgroup, by axis (``sex``) or intersection of axes (``sex x age``), then by name.

    Raises:
        InputError: an axis that is not sex, race or age.
    """
    check_axes(axes)
    chosen = [one for k in range(1, len(axes) + 1 if intersections else 2) for one in combinations(axes, k)]
    found: dict[str, dict[str, NDArray[np.int64]]] = {}
    for several in chosen:
        names = [group_of(item, several) for item in items.items]
        rows = {
            name: np.array([row for row, one in enumerate(names) if one == name], dtype=np.int64)
            for name in sorted({name for name in names if name})
        }
        if rows:
            found[" x ".join(several)] = rows
    return found


def check_axes(axes: Sequence[str]) -> None:
    """Raises InputError unless all are known."""
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown or not axes:
        raise InputError(f"axes {', '.join(axes) or '(none)'}; expected some of {', '.join(AXES)}")


@dataclass(frozen=True)
class Group:
    """A subgroup's measure over n test pictures; None, with the ``reason``, where it cannot be given."""

    name: str
    n: int
    value: Sampled | None
    reason: str = ""


@dataclass(frozen=True)
class Gap:
    """Of the groups of one axis: the best and the worst, their difference, and what chance would make of it.

    ``value``: highest minus lowest. ``chance``: the same with the test pictures dealt to groups of these sizes at
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
    from xgem.eval.utility.scores import macro_auc_draws, weighted_f1_draws

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
    """A measure of each subgroup, on the same resamplings of all test pictures, so that differences are paired.

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
            found.append(Group(name, len(rows), None, "no class of its pictures can be tested"))
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
    """Pearson's r of a measure on real and on synthetic test pictures, over the subgroups that both have (ChexGen).

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


@dataclass(frozen=True)
class TopUp:
    """How many synthetic pictures each subgroup is to get: ``wanted`` of it, of which ``had`` can be had."""

    axes: tuple[str, ...]
    counts: Mapping[str, int]
    wanted: Mapping[str, int]
    had: Mapping[str, int]

    @property
    def lacking(self) -> dict[str, int]:
        return {name: n - self.had[name] for name, n in self.wanted.items() if n > self.had[name]}


def plan_top_up(real: EvalSet, synthetic: EvalSet, axes: Sequence[str], *, share: float = 1.0) -> TopUp:
    """Plan to top up every subgroup of the training pictures to ``share`` of the largest (1: parity, ChexGen).

    Only subgroups that the real pictures have are topped up.

    Raises:
        InputError: unknown axes, a share outside (0, 1], or real pictures of whom nothing is known.
    """
    check_axes(axes)
    if not 0 < share <= 1:
        raise InputError(f"topping up to a share of {share:g} of the largest group; expected more than 0, at most 1")
    counts = _counted(real, axes)
    if not counts:
        raise InputError(f"{real.name}: {' and '.join(axes)} of no picture is known; topping up goes by them")
    goal = math.ceil(share * max(counts.values()) - 1e-9)
    there = _counted(synthetic, axes)
    wanted = {name: max(0, goal - n) for name, n in counts.items()}
    return TopUp(tuple(axes), counts, wanted, {name: min(n, there.get(name, 0)) for name, n in wanted.items()})


def selected(plan: TopUp, synthetic: EvalSet, *, seed: int = 0) -> EvalSet:
    """The synthetic pictures of a plan, at random within each subgroup."""
    left = dict(plan.had)
    chosen: list[int] = []
    for row in map(int, np.random.default_rng([seed, 22]).permutation(len(synthetic))):
        name = group_of(synthetic.items[row], plan.axes)
        if name is not None and left.get(name, 0):
            left[name] -= 1
            chosen.append(row)
    return synthetic.subset(sorted(chosen))


def mitigation(
    real: EvalSet,
    synthetic: EvalSet,
    test: EvalSet,
    settings: UtilitySettings,
    *,
    axes: Sequence[str],
    share: float = 1.0,
    classes: Sequence[str] | None = None,
    cache: Path | None = None,
    device: str = "cpu",
) -> tuple[TopUp, EvalSet, dict[str, Array]]:
    """Train a classifier on the real pictures, and another on these topped up by a plan, and ask both of the test set.

    Args:
        settings: of a classification (:class:`xgem.eval.utility.settings.UtilitySettings`).
        cache, device: as :func:`xgem.eval.utility.runner.run_protocols`.

    Returns:
        the plan, the test pictures that have labels, and of each training (``real``, ``topped up``) the scores
        (runs, n, classes) on them, for :func:`xgem.eval.families.fairness.evaluate`.

    Raises:
        DataError: training and test pictures overlap.
    """
    from xgem.eval.utility.classification import Classification
    from xgem.eval.utility.protocols import Protocol, Training, joined, real_only
    from xgem.eval.utility.runner import run_protocols
    from xgem.labels.vocabulary import CHEXPERT_CLASSES

    task = Classification(settings, classes or CHEXPERT_CLASSES)
    real, synthetic, test = task.usable(real), task.usable(synthetic), task.usable(test)
    plan = plan_top_up(real, synthetic, axes, share=share)
    protocols = (
        Protocol("real", lambda seed: real_only(real)),
        Protocol("topped up", lambda seed: Training(joined(real, selected(plan, synthetic, seed=seed)))),
    )
    tested = run_protocols(task, protocols, (real, synthetic), test, cache=cache, device=device)
    scores = {
        name: np.stack([one["scores"].astype(np.float64) for one in runs.predictions])
        for name, runs in tested.runs.items()
    }
    return plan, test, scores


def _counted(items: EvalSet, axes: Sequence[str]) -> dict[str, int]:
    names = [name for item in items.items if (name := group_of(item, axes))]
    return {name: names.count(name) for name in sorted(set(names))}
