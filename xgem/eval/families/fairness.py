"""Performance of a classifier by subgroup of patients, on real and on paired synthetic images (ChexGen)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.data.sets import EvalSet
from xgem.eval import plots
from xgem.eval.record import FamilyResult, Metric
from xgem.eval.registry import spec
from xgem.eval.subgroups import AXES, TopUp, group_of, subgroups
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.bootstrap import Array, Bootstrap
from xgem.metrics.fairness import MEASURES, MIN_N, Gap, Group, MeasureName, by_group, gap, group_correlation
from xgem.types import InputError, ShapeError
from xgem.utils.tables import csv_text

FAMILY: Final = "fairness"
TABLE: Final = "fairness_subgroups.csv"
_KEYS: Final[dict[MeasureName, str]] = {"weighted F1": "f1_weighted", "AUROC macro": "auroc_macro"}
_HEADS: Final = ("metric", "judge", "axis", "group", "n", "value", "low", "high", "not_computed")


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
    """Metrics of one or several classifiers by subgroup, on real test images and on synthetic ones.

    Args:
        test: real images with labels and sex, race or age.
        scores: by the classifier's name, such as ``real`` and ``topped up`` (:func:`xgem.eval.subgroups.mitigation`):
            (n, classes) or (runs, n, classes) probabilities for ``test``. The others are compared with the first.
        synthetic: by the same names, scores of a synthetic image for each image of ``test``, row by row
            (:func:`xgem.data.sets.pairs`).
        threshold: for F1; one for all classes, or one per class.
        unmentioned: ``negative`` counts an unmentioned class as absent; -1 (uncertain) is never counted.
        min_n: smaller subgroups are listed but not computed.
        judge, weights: for the record: the network that gave the scores, and the hash of its weights.
        plan: how the training images were topped up, for the record.

    Raises:
        ShapeError: scores of another shape.
        InputError: no scores, unknown axes, or no sex, race or age is given.
    """
    labels = _labels(test, classes, unmentioned)
    _check_scores(scores, synthetic, labels.shape)
    rows = subgroups(test, axes, intersections=intersections)
    if not rows:
        raise InputError(f"{test.name}: no {', '.join(axes)} is given; cannot form subgroups")
    measured = _Measured(
        scores,
        synthetic or {},
        labels,
        Bootstrap(len(test), draws=draws, seed=seed),
        threshold,
        min_n,
        permutations,
        seed,
        {"extractor": judge, "weights": weights},
    )
    # Metric by metric, on every axis
    metrics: list[Metric] = []
    table: list[list[Any]] = []
    charts: dict[str, bytes] = {}
    for measure in MEASURES:
        for axis, members in rows.items():
            groups = measured.groups(measure, members)
            metrics += measured.metrics(measure, axis, members, groups)
            table += [_row(measure, axis, name, group) for name, several in groups.items() for group in several]
            chart = _chart(measure, groups)
            if chart is not None:
                charts[f"{spec(_KEYS[measure]).label} by {axis}"] = chart
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
    return FamilyResult(
        FAMILY, metrics, settings, _details(test, axes, plan), charts, tables={TABLE: csv_text(_HEADS, table)}
    )


def _labels(test: EvalSet, classes: Sequence[str], unmentioned: str) -> Array:
    """Labels (n, classes): 1, 0, or NaN where a label does not count."""
    labels = np.asarray(test.labels(classes))
    if unmentioned == "negative":
        labels = np.where(np.isnan(labels), 0.0, labels)
    return np.where(labels == -1, np.nan, labels)


def _details(test: EvalSet, axes: Sequence[str], plan: TopUp | None) -> dict[str, Any]:
    """The number of images with an unknown value on each axis, and how the training images were topped up."""
    details: dict[str, Any] = {
        "without": {axis: sum(group_of(item, (axis,)) is None for item in test.items) for axis in axes}
    }
    if plan is not None:
        details["top_up"] = {
            "axes": list(plan.axes),
            "real": dict(plan.counts),
            "wanted": dict(plan.wanted),
            "added": dict(plan.had),
        }
    return details


def _check_scores(scores: Mapping[str, Array], synthetic: Mapping[str, Array] | None, shape: tuple[int, ...]) -> None:
    """Raises InputError without scores, ShapeError if they are not (n, classes) or (runs, n, classes)."""
    if not scores:
        raise InputError("no scores: give those of at least one classifier")
    for name, values in [*scores.items(), *(synthetic or {}).items()]:
        if values.shape[-2:] != shape or values.ndim not in (2, 3):
            raise ShapeError(f"scores {name!r} of {values.shape}: expected {shape}, one row per test image")


@dataclass(frozen=True)
class _Measured:
    """Scores of real and of synthetic images by classifier, and the settings of their metrics."""

    scores: Mapping[str, Array]
    synthetic: Mapping[str, Array]
    labels: Array
    bootstrap: Bootstrap
    threshold: float | Array
    min_n: int
    permutations: int
    seed: int
    extractor: Mapping[str, Any]

    def groups(self, measure: MeasureName, members: Mapping[str, NDArray[np.int64]]) -> dict[str, list[Group]]:
        """A metric of every subgroup by classifier; for synthetic images under a separate name."""
        options: dict[str, Any] = {"threshold": self.threshold, "min_n": self.min_n}
        named = {**self.scores, **{_synthetic(name): values for name, values in self.synthetic.items()}}
        return {
            name: by_group(measure, values, self.labels, members, self.bootstrap, **options)
            for name, values in named.items()
        }

    def metrics(
        self,
        measure: MeasureName,
        axis: str,
        members: Mapping[str, NDArray[np.int64]],
        groups: Mapping[str, Sequence[Group]],
    ) -> Iterator[Metric]:
        """For every classifier: each subgroup, the gap, the worst group, the correlation with synthetic images."""
        first: Gap | None = None
        key = _KEYS[measure]
        for name, values in self.scores.items():
            yield from self._of_groups(key, axis, name, groups[name])
            options: dict[str, Any] = {"threshold": self.threshold, "permutations": self.permutations}
            between = gap(measure, groups[name], values, self.labels, members, seed=self.seed, **options)
            yield from self._of_gap(key, axis, name, groups[name], between, first)
            if name == next(iter(self.scores)):
                first = between
            if name in self.synthetic:
                generated = groups[_synthetic(name)]
                yield from self._of_groups(key, axis, _synthetic(name), generated)
                yield self._of_correlation(key, axis, name, groups[name], generated)

    def _of_groups(self, key: str, axis: str, name: str, groups: Sequence[Group]) -> Iterator[Metric]:
        for group in groups:
            of = f"{name}, {axis}: {group.name}"
            if group.value is None:
                yield Metric.missing(key, group.reason, of=of, **self.extractor)
            else:
                yield Metric.measured(key, group.value, of=of, **self.extractor)

    def _of_gap(
        self, key: str, axis: str, name: str, groups: Sequence[Group], between: Gap | None, first: Gap | None
    ) -> Iterator[Metric]:
        of = f"{name}, {axis}"
        if between is None:
            reason = "fewer than two subgroups could be computed"
            for suffix in ("gap", "worst_group"):
                yield Metric.missing(f"{key}_{suffix}", reason, of=of, **self.extractor)
            return
        worst = next(group.value for group in groups if group.name == between.worst)
        assert worst is not None
        before = {} if first is None else {next(iter(self.scores)): first.value}
        # Of small subgroups, not every resampling can be computed, and not the same ones for every classifier
        known = np.isfinite(between.value.draws)
        paired = known.any() and all(np.array_equal(np.isfinite(one.draws), known) for one in before.values())
        yield Metric.measured(
            f"{key}_gap",
            between.value,
            of=of,
            paired=before if paired else {},
            unpaired={"chance": between.chance} | ({} if paired else before),
            settings={"best": between.best, "worst": between.worst, "permutation_p": between.p},
            **self.extractor,
        )
        yield Metric.measured(f"{key}_worst_group", worst, of=of, settings={"group": between.worst}, **self.extractor)

    def _of_correlation(
        self, key: str, axis: str, name: str, real: Sequence[Group], synthetic: Sequence[Group]
    ) -> Metric:
        options: dict[str, Any] = {"of": f"{name}, {axis}", **self.extractor}
        correlation = group_correlation(real, synthetic)
        if correlation is None:
            reason = "fewer than three subgroups: r could only be 1 or -1"
            return Metric.missing(f"{key}_group_correlation", reason, **options)
        return Metric.measured(f"{key}_group_correlation", correlation, **options)


def _synthetic(name: str) -> str:
    return f"{name}, synthetic images"


def _chart(measure: MeasureName, groups: Mapping[str, Sequence[Group]]) -> bytes | None:
    """Bars of every subgroup by classifier; None if the first classifier has no value."""
    first = next(iter(groups.values()))
    if not any(group.value for group in first):
        return None
    series = {
        name: [group.value.estimate() if group.value else None for group in several] for name, several in groups.items()
    }
    label = spec(_KEYS[measure]).label
    return plots.bars([group.name for group in first], series, label=label, counts=[group.n for group in first])


def _row(measure: MeasureName, axis: str, name: str, group: Group) -> list[Any]:
    estimate = None if group.value is None else group.value.estimate()
    numbers = [None, None, None] if estimate is None else [estimate.value, *estimate.interval]
    return [_KEYS[measure], name, axis, group.name, group.n, *numbers, group.reason]
