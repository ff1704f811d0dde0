"""Whether a judge serves all groups of patients alike, on real and on paired synthetic images (ChexGen)."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xgem.data.sets import EvalSet
from xgem.eval import plots
from xgem.eval.record import FamilyResult, Metric
from xgem.eval.subgroups import AXES, TopUp, subgroups
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.bootstrap import Array, Bootstrap
from xgem.metrics.fairness import MEASURES, MIN_N, Gap, Group, MeasureName, by_group, gap, group_correlation
from xgem.types import InputError, ShapeError

FAMILY = "fairness"


def evaluate(
    test: EvalSet,
    scores: Mapping[str, Array],
    *,
    synthetic: Mapping[str, Array] | None = None,
    classes: Sequence[str] = CHEXPERT_CLASSES,
    axes: Sequence[str] = AXES,
    intersections: bool = True,
    threshold: float | Array = 0.5,
    unmentioned: str = "unknown",
    min_n: int = MIN_N,
    draws: int = 1000,
    permutations: int = 200,
    seed: int = 0,
    judge: str = "",
    weights: str = "",
    plan: TopUp | None = None,
) -> FamilyResult:
    """Measures of one or several judges by subgroup, on real test images, and how far synthetic ones tell the same.

    Args:
        test: real images with labels and sex, race or age.
        scores: by the judge's name, such as ``real`` and ``topped up`` (:func:`xgem.eval.subgroups.mitigation`): (n,
            classes) or (runs, n, classes) probabilities of ``test``. The first is what others are compared with.
        synthetic: by the same names, scores of a synthetic image for each of ``test``, row by row
            (:func:`xgem.data.sets.pairs`).
        threshold: of the F1, one or one a class.
        unmentioned: ``negative`` counts a class that nothing is said of as absent; -1 (uncertain) is never counted.
        min_n: smaller subgroups are named, not computed.
        judge, weights: for the record: what gave the scores, and its weights' hash.
        plan: how the training images were topped up, for the record.

    Raises:
        ShapeError: scores of another shape.
        InputError: no judge, unknown axes, or nothing is known of any patient.
    """
    labels = np.asarray(test.labels(classes))
    if unmentioned == "negative":
        labels = np.where(np.isnan(labels), 0.0, labels)
    labels = np.where(labels == -1, np.nan, labels)
    if not scores:
        raise InputError("no scores: give at least one judge's")
    for name, one in [*scores.items(), *(synthetic or {}).items()]:
        if one.shape[-2:] != labels.shape or one.ndim not in (2, 3):
            raise ShapeError(f"scores {name!r} of {one.shape}: expected {labels.shape}, one row a test image")
    rows = subgroups(test, axes, intersections=intersections)
    if not rows:
        raise InputError(f"{test.name}: {', '.join(axes)} of no patient is known; subgroups go by them")
    bootstrap = Bootstrap(len(test), draws=draws, seed=seed)
    options: dict[str, Any] = {"extractor": judge, "weights": weights}
    first = next(iter(scores))
    metrics: list[Metric] = []
    table: list[list[Any]] = []
    shown: dict[str, bytes] = {}
    for measure in MEASURES:
        for axis, members in rows.items():

            def of(values: Array, members: Any = members, measure: MeasureName = measure) -> list[Group]:
                return by_group(measure, values, labels, members, bootstrap, threshold=threshold, min_n=min_n)

            groups = {name: of(one) for name, one in scores.items()}
            generated = {name: of(one) for name, one in (synthetic or {}).items()}
            gaps = {
                name: gap(
                    measure,
                    groups[name],
                    scores[name],
                    labels,
                    members,
                    threshold=threshold,
                    permutations=permutations,
                    seed=seed,
                )
                for name in scores
            }
            for name in scores:
                metrics += _of_groups(measure, axis, name, groups[name], options)
                metrics += _of_gap(measure, axis, name, groups, gaps, first, options)
                if name in generated:
                    metrics += _of_groups(measure, axis, f"{name}, synthetic images", generated[name], options)
                    metrics.append(_of_correlation(measure, axis, name, groups[name], generated[name], options))
            every = groups | {f"{name}, synthetic images": found for name, found in generated.items()}
            table += [_row(measure, axis, name, one) for name, found in every.items() for one in found]
            if any(one.value for one in groups[first]):
                series = {
                    name: [one.value.estimate() if one.value else None for one in found]
                    for name, found in every.items()
                }
                names = [one.name for one in groups[first]]
                shown[f"{measure} by {axis}"] = plots.bars(
                    names, series, label=measure, counts=[one.n for one in groups[first]]
                )
    unknown = {axis: sum(_unknown(item, axis) for item in test.items) for axis in axes}
    details: dict[str, Any] = {"without": unknown}
    if plan is not None:
        details["top_up"] = {
            "axes": list(plan.axes),
            "real": dict(plan.counts),
            "wanted": dict(plan.wanted),
            "added": dict(plan.had),
        }
    settings = {
        "seed": seed,
        "draws": draws,
        "permutations": permutations,
        "min_n": min_n,
        "threshold": np.asarray(threshold).tolist(),
        "unmentioned": unmentioned,
        "classes": list(classes),
        "axes": list(axes),
        "judge": judge,
        "weights": weights,
        "test": {"name": test.name, "n": len(test), "sha256": test.sha256, "labelled_by": test.labelled_by},
    }
    return FamilyResult(FAMILY, metrics, settings, details, shown, tables={"fairness_subgroups.csv": _csv(table)})


def _of_groups(
    measure: str, axis: str, judge: str, groups: Sequence[Group], options: Mapping[str, Any]
) -> list[Metric]:
    return [
        Metric.missing(measure, one.reason, of=f"{judge}, {axis}: {one.name}", **options)
        if one.value is None
        else Metric(
            measure,
            one.value.estimate(),
            of=f"{judge}, {axis}: {one.name}",
            higher_is_better=True,
            **options,
        )
        for one in groups
    ]


def _of_gap(
    measure: str,
    axis: str,
    judge: str,
    groups: Mapping[str, Sequence[Group]],
    gaps: Mapping[str, Gap | None],
    first: str,
    options: Mapping[str, Any],
) -> list[Metric]:
    found, of = gaps[judge], f"{judge}, {axis}"
    if found is None:
        reason = "fewer than two subgroups could be computed"
        return [Metric.missing(f"{measure}: {what}", reason, of=of, **options) for what in ("gap", "worst group")]
    worst = next(one.value for one in groups[judge] if one.name == found.worst)
    assert worst is not None
    metrics = [
        Metric(
            f"{measure}: gap",
            found.value.estimate(),
            of=of,
            higher_is_better=False,
            references={"chance": found.chance.estimate()},
            settings={"best": found.best, "worst": found.worst, "permutation_p": found.p},
            **options,
        ),
        Metric(
            f"{measure}: worst group",
            worst.estimate(),
            of=of,
            higher_is_better=True,
            settings={"group": found.worst},
            **options,
        ),
    ]
    before = gaps[first]
    if judge != first and before is not None:
        metrics.append(
            Metric(
                f"{measure}: change of the gap",
                (found.value - before.value).estimate(),
                of=f"{judge} - {first}, {axis}",
                higher_is_better=False,
                **options,
            )
        )
    return metrics


def _of_correlation(
    measure: str,
    axis: str,
    judge: str,
    real: Sequence[Group],
    synthetic: Sequence[Group],
    options: Mapping[str, Any],
) -> Metric:
    name, of = f"{measure}: r of real and synthetic", f"{judge}, {axis}"
    found = group_correlation(real, synthetic)
    if found is None:
        return Metric.missing(name, "fewer than three subgroups: r could only be 1 or -1", of=of, **options)
    return Metric(name, found.estimate(), of=of, higher_is_better=True, **options)


def _unknown(item: Any, axis: str) -> bool:
    from xgem.eval.subgroups import group_of

    return group_of(item, (axis,)) is None


def _row(measure: str, axis: str, judge: str, group: Group) -> list[Any]:
    one = None if group.value is None else group.value.estimate()
    numbers = ["", "", ""] if one is None else [one.value, one.low, one.high]
    return [measure, judge, axis, group.name, group.n, *numbers, group.reason]


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(["measure", "judge", "axis", "group", "n", "value", "low", "high", "not_computed"])
    table.writerows(rows)
    return stream.getvalue()
