"""Results of one family on several sets of the same studies: paired references, and means over samples."""

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
    """``result`` with the values of ``others`` as references by name, and the paired differences.

    All must be of the same studies in the same order, with the same bootstrap. A missing value gives no reference, a
    value with another number of studies one without a difference.
    """
    numbers = {name: _numbers(other) for name, other in others.items()}

    def with_all(metric: Metric) -> Metric:
        return _with(metric, {name: values.get(_key(metric)) for name, values in numbers.items()})

    return replace(result, metrics=[with_all(metric) for metric in result.metrics])


def beside_best(result: FamilyResult, others: Mapping[str, FamilyResult]) -> FamilyResult:
    """As :func:`beside`, but with only the best of ``others`` per metric; none without a better direction."""
    numbers = {name: _numbers(other) for name, other in others.items()}

    def with_best(metric: Metric) -> Metric:
        known = {name: value for name, values in numbers.items() if (value := values.get(_key(metric))) is not None}
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
    added = {name: Reference(other, metric.value.minus(other)) for name, other in others.items() if other is not None}
    return replace(metric, references={**metric.references, **added})


def averaged(results: Sequence[FamilyResult]) -> FamilyResult:
    """The first result with every value replaced by the mean over all results, of several samples of the same studies.

    Details, plots, examples and tables are those of the first. A value that is missing in a result stays the first's.
    """
    first, *_ = results
    rows = [{_key(metric): metric for metric in result.metrics} for result in results]
    metrics: list[Metric] = []
    for metric in first.metrics:
        found = [row.get(_key(metric)) for row in rows]
        measured = [part for part in found if part is not None and part.value is not None]
        metrics.append(metric if len(measured) < len(results) else _mean_metric(measured))
    return replace(first, metrics=metrics, settings={**first.settings, "samples per study": len(results)})


def over_samples(
    measure: Callable[..., FamilyResult], real: EvalSet, generated: EvalSet, **options: Any
) -> FamilyResult:
    """A family that uses one sample of each study, averaged over all samples.

    The first call gets the whole set, for what compares a study's samples with one another.
    """
    _, (_, *others) = samples(real, generated)
    return averaged([measure(real, sample, **options) for sample in (generated, *others)])


def _mean_metric(parts: Sequence[Metric]) -> Metric:
    first, *_ = parts
    references = {
        name: replace(
            reference,
            value=_mean([part.references[name].value for part in parts]) or reference.value,
            difference=_mean([part.references[name].difference for part in parts]),
        )
        for name, reference in first.references.items()
        if all(name in part.references for part in parts)
    }
    return replace(
        first,
        value=_mean([part.value for part in parts]),
        references=references,
        share_of_ceiling=_mean([part.share_of_ceiling for part in parts]),
    )


def _mean(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """The mean of estimates; None if one is missing. Without draws it has no interval."""
    known = [estimate for estimate in estimates if estimate is not None]
    if len(known) < len(estimates):
        return None
    parts = [Sampled(e.value, np.array([np.nan]) if e.draws is None else e.draws, e.n) for e in known]
    if len({len(part.draws) for part in parts}) > 1:
        parts = [replace(part, draws=np.array([np.nan])) for part in parts]
    return average(parts).estimate()
