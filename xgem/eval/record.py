"""The result types of all evaluations: metrics with n, interval, references, extractor and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xgem.eval.registry import MetricSpec, spec
from xgem.metrics.bootstrap import Comparison, Estimate, Sampled
from xgem.types import InputError

Number = Estimate | Sampled | None
SHUFFLED, CEILING = "shuffled", "ceiling"


@dataclass(frozen=True)
class Reference:
    """What a metric is compared with: a control, a baseline, or the value of real data.

    Attributes:
        value: the reference itself.
        difference: the metric minus the reference, paired over the same studies; None where they are not paired.
        p: two-sided p-value of that difference by ``test`` (Wilcoxon's signed-rank test, a bootstrap).
    """

    value: Estimate
    difference: Estimate | None = None
    p: float | None = None
    test: str = ""


@dataclass(frozen=True)
class Metric:
    """One number.

    Attributes:
        name: registered in :mod:`xgem.eval.registry`, with its direction and source.
        value: None if it could not be computed; ``reason`` then says why.
        of: a part of the set (a finding, a subgroup, a training protocol); empty for the whole set.
        extractor: the feature space, the judge of images or the labeller of reports.
        weights: hash or version of the extractor.
        references: by name. ``shuffled``: prompts of other studies; ``floor`` and ``ceiling``: the value of real images
            for a distance and for a score; ``constant``, ``template``, ``retrieval``, ``ridge``: baselines;
            ``independent``: outputs sampled separately; other names are free.
        share_of_ceiling: (value - shuffled) / (ceiling - shuffled), if both are paired with the value.
    """

    name: str
    value: Estimate | None
    reason: str = ""
    of: str = ""
    extractor: str = ""
    weights: str = ""
    references: Mapping[str, Reference] = field(default_factory=dict[str, Reference])
    share_of_ceiling: Estimate | None = None
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        spec(self.name)

    @classmethod
    def missing(cls, name: str, reason: object, **options: Any) -> Metric:
        """A metric that could not be computed."""
        return cls(name, None, reason=str(reason), **options)

    @classmethod
    def measured(
        cls,
        name: str,
        value: Estimate | Sampled | Comparison,
        *,
        paired: Mapping[str, Number] | None = None,
        unpaired: Mapping[str, Number] | None = None,
        tests: Mapping[str, tuple[float, str]] | None = None,
        n: int | None = None,
        **options: Any,
    ) -> Metric:
        """A metric with its references; a reference that is None is left out.

        Args:
            value: a comparison adds the reference ``shuffled``.
            paired: values of the same studies with the same bootstrap: their difference from the value is computed.
            unpaired: values of other data.
            tests: p-value and name of the test, by the name of a paired reference.
            n: number of studies behind all of these, if fewer than the bootstrap's (some have no label).
            options: ``of``, ``extractor``, ``weights``, ``settings``.

        Raises:
            InputError: the metric is not registered, or a paired reference has another n or number of draws.
        """
        paired = dict(paired or {})
        if isinstance(value, Comparison):
            paired = {SHUFFLED: value.shuffled, **paired}
            value = value.matched
        estimate = _estimate(value)
        # Paired references with their differences, then unpaired ones
        references: dict[str, Reference] = {}
        for key, other in paired.items():
            if other is None:
                continue
            reference = _estimate(other)
            difference = estimate.minus(reference)
            if difference is None:
                raise InputError(f"{name}: reference {key!r} is of other studies or draws; give it as unpaired")
            p, test = (tests or {}).get(key, (None, ""))
            references[key] = Reference(_sized(reference, n), _sized(difference, n), p, test)
        for key, other in (unpaired or {}).items():
            if other is not None:
                references[key] = Reference(_estimate(other))
        share = _share_of_ceiling(estimate, paired.get(SHUFFLED), paired.get(CEILING))
        return cls(
            name,
            _sized(estimate, n),
            references=references,
            share_of_ceiling=None if share is None else _sized(share, n),
            **options,
        )

    @property
    def spec(self) -> MetricSpec:
        """Its entry in the registry."""
        return spec(self.name)

    @property
    def higher_is_better(self) -> bool | None:
        return self.spec.higher_is_better


def _estimate(number: Estimate | Sampled) -> Estimate:
    return number.estimate() if isinstance(number, Sampled) else number


def _sized(estimate: Estimate, n: int | None) -> Estimate:
    return estimate if n is None else Estimate(estimate.value, estimate.low, estimate.high, n, estimate.draws)


def _share_of_ceiling(value: Estimate, shuffled: Number, ceiling: Number) -> Estimate | None:
    """The value on a scale from the shuffled control (0) to the ceiling (1), without draws in which both are equal."""
    if shuffled is None or ceiling is None:
        return None
    low, high = _estimate(shuffled), _estimate(ceiling)
    if value.draws is None or low.draws is None or high.draws is None:
        return None
    gain, span = value.draws - low.draws, high.draws - low.draws
    draws = np.divide(gain, span, out=np.full(len(gain), np.nan), where=span != 0)
    total = high.value - low.value
    return Sampled((value.value - low.value) / total if total else float("nan"), draws, value.n).estimate()


@dataclass(frozen=True)
class Example:
    """Images shown side by side, (h, w) uint8 each, with a caption."""

    caption: str
    images: Sequence[NDArray[np.uint8]]


@dataclass(frozen=True)
class FamilyResult:
    """All metrics of one family (fidelity, text, ...) on one pair of sets.

    Attributes:
        settings: seed, names, sizes and hashes of the sets, and everything else on which the numbers depend.
        details: whatever is not a single number, as JSON values.
        plots: PNG files' bytes by title; ``examples``: images to look at; both appear only in the HTML report.
        tables: CSV text by file name, such as values per case or the columns of a paper's own tables.
        route: inputs and output of the generated set, such as ``report->frontal``; empty for sets given as files.
        reason: why nothing in the family could be computed.
    """

    family: str
    metrics: Sequence[Metric]
    settings: Mapping[str, Any]
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    plots: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    examples: Sequence[Example] = ()
    tables: Mapping[str, str] = field(default_factory=dict[str, str])
    route: str = ""
    reason: str = ""

    def __post_init__(self) -> None:
        for metric in self.metrics:
            if self.family not in metric.spec.families:
                raise InputError(
                    f"metric {metric.name!r} is registered for {', '.join(metric.spec.families)}, not {self.family}"
                )

    @classmethod
    def missing(cls, family: str, reason: object, **options: Any) -> FamilyResult:
        """A family in which nothing could be computed; ``options`` are ``settings`` and ``route``."""
        return cls(family, (), **{"settings": {}, **options}, reason=str(reason))

    @property
    def title(self) -> str:
        """The family and its route, for headings."""
        return f"{self.family.capitalize()}, {self.route}" if self.route else self.family.capitalize()

    def find(self, name: str, *, of: str = "", extractor: str | None = None) -> Metric:
        """The metric of this name; ``extractor`` if several have the name.

        Raises:
            KeyError: there is none, or several that differ by extractor.
        """
        matching = [
            metric
            for metric in self.metrics
            if metric.name == name and metric.of == of and extractor in (None, metric.extractor)
        ]
        if len(matching) != 1:
            by = ", ".join(metric.extractor or "(none)" for metric in matching)
            raise KeyError(f"{name}/{of}: {len(matching)} metrics in {self.title}" + (f", by {by}" if by else ""))
        return matching[0]

    def __getitem__(self, name: str) -> Metric:
        """The only metric of this name, or ``name/of``; see :meth:`find`."""
        key, _, of = name.partition("/")
        return self.find(key, of=of)


def finite(value: Any) -> Any:
    """The value as JSON values: NaN and infinities become None, NumPy scalars Python numbers."""
    if isinstance(value, Mapping):
        return {str(key): finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not np.isfinite(value) else value
