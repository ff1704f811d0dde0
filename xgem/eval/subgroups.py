"""Subgroups of patients by sex, race and age, and topping them up with synthetic images (ChexGen)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from xgem.data.sets import EvalSet, Item
from xgem.metrics.bootstrap import Array
from xgem.types import InputError

if TYPE_CHECKING:
    from pathlib import Path

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


def plan_top_up(real: EvalSet, synthetic: EvalSet, axes: Sequence[str], *, share: float = 1.0) -> TopUp:
    """Plan to top up every subgroup of the training images to ``share`` of the largest one (1: parity, ChexGen).

    Only subgroups with real images are topped up.

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
    """Train one classifier on the real images and another on the topped-up set, and test both.

    Args:
        settings: settings of a classification (:class:`xgem.judges.settings.UtilitySettings`).
        cache, device: as in :func:`xgem.eval.utility.runner.run_protocols`.

    Returns:
        the plan, the test images that have labels, and by training set (``real``, ``topped up``) the scores
        (runs, n, classes) on them, for :func:`xgem.eval.families.fairness.evaluate`.

    Raises:
        DataError: training and test images overlap.
    """
    from xgem.eval.utility.protocols import Protocol, Training, joined, real_only
    from xgem.eval.utility.runner import run_protocols
    from xgem.judges.tasks.classification import Classification
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
        name: np.stack([predictions["scores"].astype(np.float64) for predictions in runs.predictions])
        for name, runs in tested.runs.items()
    }
    return plan, test, scores


def _counted(items: EvalSet, axes: Sequence[str]) -> dict[str, int]:
    names = [name for item in items.items if (name := group_of(item, axes))]
    return {name: names.count(name) for name in sorted(set(names))}
