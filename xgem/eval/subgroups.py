"""Subgroups of patients by sex, race and age, and topping them up with synthetic images (ChexGen)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.data.sets import EvalSet, Item
from xgem.metrics.bootstrap import Array
from xgem.metrics.fairness import MIN_N, by_group
from xgem.types import InputError

if TYPE_CHECKING:
    from pathlib import Path

    from xgem.eval.utility.runner import Tested
    from xgem.judges.settings import UtilitySettings


AXES: Final = ("sex", "race", "age")


AGE_BANDS: Final = ((19, 40), (41, 65), (66, 200))
"""In whole years, both ends included (ChexGen, Methods); the last is written 66+."""


def age_band(age: float | None) -> str | None:
    """``19-40``, ``41-65`` or ``66+``; None for children and for unknown ages."""
    if age is None or not math.isfinite(age):
        return None
    band = next(((low, high) for low, high in AGE_BANDS if low <= math.floor(age) <= high), None)
    if band is None:
        return None
    return f"{band[0]}+" if band == AGE_BANDS[-1] else f"{band[0]}-{band[1]}"


def group_of(item: Item, axes: Sequence[str]) -> str | None:
    """The subgroup of an item on one or several axes, such as ``F, 66+``; None if any of them is unknown."""
    parts = [age_band(item.age) if axis == "age" else getattr(item, axis) for axis in axes]
    return ", ".join(map(str, parts)) if all(parts) else None


def subgroups(
    items: EvalSet, axes: Sequence[str] = AXES, *, intersections: bool = True
) -> dict[str, dict[str, NDArray[np.int64]]]:
    """Rows of every subgroup, by axis (``sex``) or intersection of axes (``sex x age``), then by subgroup.

    Raises:
        InputError: an axis that is not sex, race or age.
    """
    check_axes(axes)
    chosen = [some for k in range(1, len(axes) + 1 if intersections else 2) for some in combinations(axes, k)]
    result: dict[str, dict[str, NDArray[np.int64]]] = {}
    for some_axes in chosen:
        names = [group_of(item, some_axes) for item in items.items]
        rows = {
            group: np.array([row for row, name in enumerate(names) if name == group], dtype=np.int64)
            for group in sorted({name for name in names if name})
        }
        if rows:
            result[" x ".join(some_axes)] = rows
    return result


def check_axes(axes: Sequence[str]) -> None:
    """Raises InputError unless all are sex, race or age."""
    unknown = [axis for axis in axes if axis not in AXES]
    if unknown or not axes:
        raise InputError(f"axes {', '.join(axes) or '(none)'}; expected some of {', '.join(AXES)}")


@dataclass(frozen=True)
class TopUp:
    """How many synthetic images each subgroup needs (``wanted``), and how many of them are available (``had``)."""

    axes: tuple[str, ...]
    counts: Mapping[str, int]
    wanted: Mapping[str, int]
    had: Mapping[str, int]

    @property
    def lacking(self) -> dict[str, int]:
        return {name: n - self.had[name] for name, n in self.wanted.items() if n > self.had[name]}


def plan_top_up(
    real: EvalSet, synthetic: EvalSet, axes: Sequence[str], *, share: float = 1.0, only: str | None = None
) -> TopUp:
    """Plan to top up every subgroup of the training images to ``share`` of the largest one (1: parity, ChexGen).

    Only subgroups with real images are topped up. ``only``: this one alone, and to twice its size at the least.

    Raises:
        InputError: unknown axes, a share outside (0, 1], or real images without sex, race or age.
    """
    check_axes(axes)
    if not 0 < share <= 1:
        raise InputError(f"share {share:g} of the largest group: expected more than 0 and at most 1")
    counts = _counted(real, axes)
    if not counts:
        raise InputError(f"{real.name}: no image has its {' and '.join(axes)}; cannot form subgroups to top up")
    goal = math.ceil(share * max(counts.values()) - 1e-9)
    available = _counted(synthetic, axes)
    wanted = {name: max(0, goal - n) for name, n in counts.items()}
    if only is not None:
        wanted = {name: max(count, counts[name]) if name == only else 0 for name, count in wanted.items()}
    return TopUp(tuple(axes), counts, wanted, {name: min(n, available.get(name, 0)) for name, n in wanted.items()})


def selected(plan: TopUp, synthetic: EvalSet, *, seed: int = 0) -> EvalSet:
    """The synthetic images of a plan, chosen at random within each subgroup."""
    remaining = dict(plan.had)
    chosen: list[int] = []
    for row in map(int, np.random.default_rng([seed, 22]).permutation(len(synthetic))):
        name = group_of(synthetic.items[row], plan.axes)
        if name is not None and remaining.get(name, 0):
            remaining[name] -= 1
            chosen.append(row)
    return synthetic.subset(sorted(chosen))


@dataclass(frozen=True)
class Mitigation:
    """Tests of a classifier of the real images (``real``) and of one of the topped-up images (``topped up``).

    Attributes:
        plan: how subgroups were topped up; ``worst``: the subgroup that alone was, or "" where all were.
        test: the test images that have labels; ``scores`` (runs, n, classes) of them by training set.
        synthetic: scores of the synthetic image of each test image, row by row; empty without such images.
    """

    plan: TopUp
    worst: str
    test: EvalSet
    scores: Mapping[str, Array]
    synthetic: Mapping[str, Array]


def mitigation(
    real: EvalSet,
    synthetic: EvalSet,
    test: EvalSet,
    settings: UtilitySettings,
    *,
    axes: Sequence[str],
    share: float = 1.0,
    classes: Sequence[str] | None = None,
    matched: EvalSet | None = None,
    held_out: EvalSet | None = None,
    min_n: int = MIN_N,
    cache: Path | None = None,
    device: str = "cpu",
) -> Mitigation:
    """Train one classifier on the real images and another on the topped-up set, and test both.

    Args:
        settings: settings of a classification (:class:`xgem.judges.settings.UtilitySettings`).
        matched: a synthetic image of each test image, which names it; the others are left out of the test.
        held_out: real images of neither set, on which the worst subgroup is found that alone is topped up; without
            them all are, to ``share`` of the largest (:func:`plan_top_up`). A subgroup counts from ``min_n`` images on.
        cache, device: as in :func:`xgem.eval.utility.runner.run_protocols`.

    Raises:
        DataError: training and test images overlap, or no synthetic image names a test image.
        InputError: no subgroup of ``held_out`` can be computed.
    """
    from xgem.data.sets import pairs
    from xgem.eval.utility.protocols import Protocol, Training, joined, real_only
    from xgem.eval.utility.runner import run_protocols
    from xgem.judges.tasks.classification import Classification
    from xgem.labels.vocabulary import CHEXPERT_CLASSES

    task = Classification(settings, classes or CHEXPERT_CLASSES)
    real, synthetic, test = task.usable(real), task.usable(synthetic), task.usable(test)
    also: dict[str, EvalSet] = {}
    if matched is not None:
        test, answers = pairs(test, matched)
        asked = zip(test.items, answers.items, strict=True)
        also["matched"] = replace(answers, items=tuple(replace(own, labels=item.labels) for item, own in asked))
    if held_out is not None:
        also["held out"] = task.usable(held_out)

    def trained(protocol: Protocol) -> Tested:
        return run_protocols(task, (protocol,), (real, synthetic), test, also=also, cache=cache, device=device)

    first = trained(Protocol("real", lambda seed: real_only(real)))
    worst = "" if held_out is None else _worst(first.also["held out"], also["held out"], axes, min_n)
    plan = plan_top_up(real, synthetic, axes, share=share, only=worst or None)
    second = trained(Protocol("topped up", lambda seed: Training(joined(real, selected(plan, synthetic, seed=seed)))))
    scores = {name: _scores(tested, name) for name, tested in (("real", first), ("topped up", second))}
    if matched is None:
        return Mitigation(plan, worst, test, scores, {})
    own = {name: _scores(one.also["matched"], name) for name, one in (("real", first), ("topped up", second))}
    return Mitigation(plan, worst, test, scores, own)


def _scores(tested: Tested, name: str) -> Array:
    """(runs, n, classes) of a protocol."""
    return np.stack([run["scores"].astype(np.float64) for run in tested.runs[name].predictions])


def _worst(tested: Tested, items: EvalSet, axes: Sequence[str], min_n: int) -> str:
    """The subgroup of ``items`` with the lowest weighted F1."""
    rows = subgroups(items, axes, intersections=True).get(" x ".join(axes), {})
    labels = tested.test.targets["labels"].astype(np.float64)
    options: dict[str, Any] = {"threshold": tested.task.settings.threshold, "min_n": min_n}
    groups = by_group("weighted F1", _scores(tested, "real"), labels, rows, tested.bootstrap(), **options)
    known = {group.name: group.value.value for group in groups if group.value is not None}
    if not known:
        reasons = "; ".join(f"{group.name}: {group.reason}" for group in groups) or "no subgroups"
        raise InputError(f"{items.name}: no subgroup by {' and '.join(axes)} can be computed ({reasons})")
    return min(known, key=lambda name: (known[name], name))


def _counted(items: EvalSet, axes: Sequence[str]) -> dict[str, int]:
    names = [name for item in items.items if (name := group_of(item, axes))]
    return {name: names.count(name) for name in sorted(set(names))}
