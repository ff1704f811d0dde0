"""The numbers of a reader study, as tables: scores, tests, agreement, guesses and reading times.

Readers are fixed, items are resampled: intervals say how a mean would vary with other items read by the same readers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np

from xgem.metrics.bootstrap import Array, Bootstrap, Estimate
from xgem.metrics.raters import centred, icc, quadratic_kappa, wilson
from xgem.metrics.significance import holm, mann_whitney, wilcoxon
from xgem.readers.plan import StudyPlan
from xgem.readers.results import Reading, matrix
from xgem.readers.task import REAL, Task
from xgem.types import NotComputed

ALL: Final = "all"
"""Stands for all readers together."""
_FEWEST: Final = 2


@dataclass(frozen=True)
class Table:
    """One table: its name in files, its title, the columns, and what to know when reading it."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: list[dict[str, Any]]
    note: str


@dataclass(frozen=True)
class Settings:
    """Seed and resamplings of the bootstrap."""

    seed: int = 0
    draws: int = 2000


def analyse(plan: StudyPlan, readings: Sequence[Reading], settings: Settings | None = None) -> list[Table]:
    """All tables of the answers that there are."""
    how = settings or Settings()
    by_task = [(task, [one for one in readings if one.task == task.name]) for task in plan.all_tasks]
    return [
        _scores(plan, by_task, how),
        _tests(plan, by_task, how),
        _agreement(plan, by_task),
        _guesses(plan, by_task),
        _times(plan, by_task),
    ]


ByTask = Sequence[tuple[Task, list[Reading]]]


def _groups(plan: StudyPlan, readings: list[Reading]) -> Iterator[tuple[str, list[Reading]]]:
    """All readers together, then each where there are several."""
    yield ALL, readings
    if len(plan.readers) > 1:
        for reader in plan.readers:
            yield reader, [one for one in readings if one.reader == reader]


def _scores(plan: StudyPlan, by_task: ByTask, how: Settings) -> Table:
    rows: list[dict[str, Any]] = []
    for task, readings in by_task:
        for arm in task.arms:
            for reader, own in _groups(plan, [one for one in readings if one.arm == arm]):
                scores = np.array([one.score for one in own if one.score is not None], dtype=np.float64)
                row: dict[str, Any] = {"task": task.name, "arm": arm, "reader": reader, "answers": len(scores)}
                row |= {"missing": len(own) - len(scores), **_filled(mean_score, own, plan.readers, how)}
                row["sd"] = float(scores.std(ddof=1)) if len(scores) > 1 else None
                reported = plan.published.reported(task.name, arm) if plan.published and reader == ALL else ()
                rows.append(row | {"published": "; ".join(map(str, reported))})
    counts, numbers = ("answers", "missing", "n"), ("value", "low", "high", "sd")
    columns = ("task", "arm", "reader", *counts, *numbers, "published", "not_computed")
    source = f" Published: {plan.published.source}." if plan.published else ""
    note = "Mean over answers with its 95 % bootstrap interval over n items, and the standard deviation of answers."
    return Table("scores", "Scores", columns, rows, note + source)


def mean_score(readings: Sequence[Reading], readers: Sequence[str], how: Settings) -> Estimate:
    """The mean of all answers; items are resampled with all their answers. ``n`` counts items with an answer.

    Raises:
        NotComputed: fewer than two items have an answer.
    """
    _, scores = matrix([one for one in readings if one.score is not None], readers)
    if len(scores) < _FEWEST:
        raise NotComputed(f"{len(scores)} items with an answer: expected at least {_FEWEST}")
    counts = np.isfinite(scores).sum(axis=1).astype(np.float64)
    bootstrap = Bootstrap(len(scores), draws=how.draws, seed=how.seed)
    return bootstrap.ratio(np.nansum(scores, axis=1), counts).estimate()


def _tests(plan: StudyPlan, by_task: ByTask, how: Settings) -> Table:
    rows: list[dict[str, Any]] = []
    for task, readings in by_task:
        values = item_means(readings, plan.readers)
        for first, second in combinations(task.arms, 2):
            name = "Wilcoxon signed-rank" if task.paired else "Mann-Whitney U"
            row: dict[str, Any] = {"task": task.name, "first": first, "second": second, "test": name}
            rows.append(row | _filled(_compared, task, values[first], values[second], how))
    computed = [row for row in rows if row.get("p") is not None]
    for row, p in zip(computed, holm([row["p"] for row in computed]), strict=True):
        row["p_holm"] = p
    columns = ("task", "first", "second", "test", "value", "low", "high", "n", "p", "p_holm", "not_computed")
    note = (
        "Difference of the arms' means over items, first minus second. An item's value is the mean of its readers' "
        "scores, each less that reader's mean in the task. p_holm is adjusted for all tests of this table."
    )
    return Table("tests", "Arms compared", columns, rows, note)


def item_means(readings: Sequence[Reading], readers: Sequence[str]) -> dict[str, dict[str, float]]:
    """By arm, the value of every case that has an answer: the mean of its scores, each less the reader's mean."""
    answered = [one for one in readings if one.score is not None]
    items, scores = matrix(answered, readers)
    known = {one.item: (one.arm, one.case) for one in answered}
    means: dict[str, dict[str, float]] = {one.arm: {} for one in readings}
    for item, row in zip(items, centred(scores), strict=True):
        arm, case = known[item]
        means[arm][case] = round(float(np.nanmean(row)), 9)
    return means


def _compared(task: Task, first: dict[str, float], second: dict[str, float], how: Settings) -> dict[str, Any]:
    options: dict[str, Any] = {"draws": how.draws, "seed": how.seed}
    if task.paired:
        cases = sorted(first.keys() & second.keys())
        if len(cases) < _FEWEST:
            raise NotComputed(f"{len(cases)} cases with answers for both: expected at least {_FEWEST}")
        difference = np.round([first[case] - second[case] for case in cases], 9)  # equal ones are ties
        paired = wilcoxon(difference, np.zeros(len(cases)), **options)
        return {**paired.difference.as_dict(), "p": paired.p}
    if min(len(first), len(second)) < _FEWEST:
        raise NotComputed(f"{len(first)} and {len(second)} items with an answer: expected at least {_FEWEST} of each")
    if len({*first.values(), *second.values()}) < 2:
        raise NotComputed("all items have the same value")
    unpaired = mann_whitney(list(first.values()), list(second.values()), **options)
    return {**unpaired.difference.as_dict(), "p": unpaired.p}


def _agreement(plan: StudyPlan, by_task: ByTask) -> Table:
    rows: list[dict[str, Any]] = []
    for task, readings in by_task:
        _, scores = matrix(readings, plan.readers)
        begun = np.flatnonzero(np.isfinite(scores).any(axis=0))
        names = [plan.readers[k] for k in begun]
        row: dict[str, Any] = {"task": task.name, "measure": "ICC(2,1)", "readers": ", ".join(names)}
        rows.append(row | _filled(_icc, scores[:, begun]))
        for one, other in combinations(range(len(plan.readers)), 2):
            pair = scores[:, [one, other]]
            row = {"task": task.name, "measure": "kappa", "readers": f"{plan.readers[one]}, {plan.readers[other]}"}
            rows.append(row | _filled(_kappa, pair, task))
    columns = ("task", "measure", "readers", "value", "low", "high", "n", "not_computed")
    note = (
        "Over items that all of the readers answered, of all arms. ICC(2,1): absolute agreement of single readers, "
        "with its 95 % F interval (Shrout and Fleiss 1979). kappa: Cohen's, with quadratic weights."
    )
    return Table("agreement", "Agreement between readers", columns, rows, note)


def _common(scores: Array) -> Array:
    """The items that all of these readers answered."""
    if scores.shape[1] < _FEWEST:
        raise NotComputed(f"answers of {scores.shape[1]} readers: expected at least {_FEWEST}")
    return scores[np.isfinite(scores).all(axis=1)]


def _icc(scores: Array) -> Estimate:
    return icc(_common(scores))


def _kappa(pair: Array, task: Task) -> dict[str, Any]:
    both = _common(pair).astype(np.int64)
    return {"value": quadratic_kappa(both[:, 0], both[:, 1], task.scores), "n": len(both)}


def _guesses(plan: StudyPlan, by_task: ByTask) -> Table:
    rows: list[dict[str, Any]] = []
    for task, readings in by_task:
        for reader, own in _groups(plan, readings) if task.turing else ():
            counts = {
                (truth, guess): sum(one.truth == truth and one.guess == guess for one in own)
                for truth in (REAL, "synthetic")
                for guess in (REAL, "synthetic")
            }
            row: dict[str, Any] = {"task": task.name, "reader": reader}
            row |= {f"{truth}_called_{guess}": count for (truth, guess), count in counts.items()}
            right = {truth: counts[truth, truth] for truth in (REAL, "synthetic")}
            of = {truth: counts[truth, REAL] + counts[truth, "synthetic"] for truth in right}
            row |= _proportion("accuracy", sum(right.values()), sum(of.values()))
            row |= _proportion("real_found", right[REAL], of[REAL])
            row |= _proportion("synthetic_found", right["synthetic"], of["synthetic"])
            rows.append(row)
    counted = [f"{truth}_called_{guess}" for truth in (REAL, "synthetic") for guess in (REAL, "synthetic")]
    shares = [f"{name}{end}" for name in ("accuracy", "real_found", "synthetic_found") for end in ("", "_low", "_high")]
    note = (
        "Shares with Wilson's 95 % interval, which counts answers as independent: that of all readers together is too "
        "narrow. 0.5 is chance where the arms have equally many items."
    )
    return Table("guesses", "Real or synthetic", ("task", "reader", *counted, *shares), rows, note)


def _proportion(name: str, right: int, of: int) -> dict[str, float | None]:
    try:
        share = wilson(right, of)
    except NotComputed:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"))
    return {name: share.value, f"{name}_low": share.low, f"{name}_high": share.high}


def _times(plan: StudyPlan, by_task: ByTask) -> Table:
    rows: list[dict[str, Any]] = []
    for task, readings in by_task:
        for reader, own in _groups(plan, readings):
            seconds = [one.seconds for one in own if one.seconds is not None]
            row: dict[str, Any] = {"task": task.name, "reader": reader, "n": len(seconds)}
            if seconds:
                low, middle, high = (float(x) for x in np.quantile(seconds, [0.25, 0.5, 0.75]))
                row |= {"median": middle, "quartile_1": low, "quartile_3": high, "sum": math.fsum(seconds)}
            rows.append(row)
    columns = ("task", "reader", "n", "median", "quartile_1", "quartile_3", "sum")
    note = "Seconds from when an item's page was last sent, by the server's clock, to the first answer."
    return Table("times", "Reading times", columns, rows, note)


def _filled(compute: Callable[..., Estimate | dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What is computed of the arguments, or the reason why it is not."""
    try:
        found = compute(*arguments)
    except NotComputed as reason:
        return {"not_computed": str(reason)}
    return found.as_dict() if isinstance(found, Estimate) else found
