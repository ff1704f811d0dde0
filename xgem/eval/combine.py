"""Results of one family on several sets of the same studies, compared in pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from xgem.data.sets import EvalSet
from xgem.eval.record import FamilyResult, Metric, Reference
from xgem.eval.studies import samples
from xgem.metrics.bootstrap import Estimate, Sampled, average


def beside(result: FamilyResult, others: Mapping[str, FamilyResult]) -> FamilyResult:
    """``result`` with the numbers of ``others`` as references by name, and the paired differences.

    All must be of the same studies in the same order, and of the same bootstrap. A number that another lacks is no
    reference; one of another number of studies is, without a difference.
    """
    numbers = {name: _numbers(other) for name, other in others.items()}

    def with_all(metric: Metric) -> Metric:
        return _with(metric, {name: one.get(_key(metric)) for name, one in numbers.items()})

    return replace(result, metrics=[with_all(metric) for metric in result.metrics])


def beside_best(result: FamilyResult, others: Mapping[str, FamilyResult]) -> FamilyResult:
    """As :func:`beside`, metric by metric with the best of ``others`` alone; with none where no direction is better."""
    numbers = {name: _numbers(other) for name, other in others.items()}

    def with_best(metric: Metric) -> Metric:
        known = {name: value for name, one in numbers.items() if (value := one.get(_key(metric))) is not None}
        if metric.higher_is_better is None or not known:
            return metric
        sign = 1 if metric.higher_is_better else -1
        best = max(known, key=lambda name: sign * known[name].value)
        return _with(metric, {best: known[best]})

    return replace(result, metrics=[with_best(metric) for metric in result.metrics])


def _key(metric: Metric) -> tuple[str, str, str]:
    return metric.name, metric.of, metric.extractor


def _numbers(result: FamilyResult) -> dict[tuple[str, str, str], Estimate | None]:
    return {_key(metric): metric.value for metric in result.metrics}


def _with(metric: Metric, others: Mapping[str, Estimate | None]) -> Metric:
    if metric.value is None:
        return metric
    found = {name: Reference(one, metric.value.minus(one)) for name, one in others.items() if one is not None}
    return replace(metric, references={**metric.references, **found})


def averaged(results: Sequence[FamilyResult]) -> FamilyResult:
    """The first result with every number the mean over all results: of several samples of the same studies.

    Details, plots, examples and tables stay the first's. A number that a result lacks keeps the first's value.
    """
    first, *_ = results
    rows = [{_key(metric): metric for metric in result.metrics} for result in results]
    metrics: list[Metric] = []
    for metric in first.metrics:
        own = [row.get(_key(metric)) for row in rows]
        full = [one for one in own if one is not None and one.value is not None]
        metrics.append(metric if len(full) < len(results) else _mean_metric(full))
    return replace(first, metrics=metrics, settings={**first.settings, "samples per study": len(results)})


def over_samples(
    measure: Callable[..., FamilyResult], real: EvalSet, generated: EvalSet, **options: Any
) -> FamilyResult:
    """A family that looks at one generation of each study, averaged over all; the first also sees all at once."""
    _, (_, *others) = samples(real, generated)
    return averaged([measure(real, one, **options) for one in (generated, *others)])


def _mean_metric(parts: Sequence[Metric]) -> Metric:
    first, *_ = parts
    references = {
        name: replace(
            reference,
            value=_mean([one.references[name].value for one in parts]) or reference.value,
            difference=_mean([one.references[name].difference for one in parts]),
        )
        for name, reference in first.references.items()
        if all(name in one.references for one in parts)
    }
    return replace(
        first,
        value=_mean([one.value for one in parts]),
        references=references,
        share_of_ceiling=_mean([one.share_of_ceiling for one in parts]),
    )


def _mean(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """None where one is missing; without draws the mean has no interval."""
    known = [one for one in estimates if one is not None]
    if len(known) < len(estimates):
        return None
    parts = [Sampled(one.value, np.array([np.nan]) if one.draws is None else one.draws, one.n) for one in known]
    if len({len(one.draws) for one in parts}) > 1:
        parts = [replace(one, draws=np.array([np.nan])) for one in parts]
    return average(parts).estimate()
