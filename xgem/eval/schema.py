"""The file format of evaluation records, as pydantic models; ``xgem eval schema`` prints it as JSON Schema.

``xgem eval`` writes one JSON record per run: the settings that all families share, then one entry for each family and
route. A metric that could not be computed has no ``value`` and gives the reason in ``not_computed``. Numbers that are
not finite are null. This is format 2; records of format 1 can also be read (:func:`read_record`).
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from xgem._version import __version__
from xgem.eval.record import FamilyResult, Metric, Reference, finite
from xgem.eval.registry import key_of, registered, spec
from xgem.metrics.bootstrap import Estimate
from xgem.types import DataError

FORMAT: Final = "xgem-measures"
FORMAT_VERSION: Final = 2


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class NumberEntry(_Entry):
    """A number with its interval."""

    value: float | None
    low: float | None = Field(description="Lower end of the 95 % bootstrap interval.")
    high: float | None = Field(description="Upper end of the 95 % bootstrap interval.")
    n: int = Field(description="Number of studies, images or reports behind it.")

    def __str__(self) -> str:
        value, low, high = (float("nan") if x is None else x for x in (self.value, self.low, self.high))
        return str(Estimate(value, low, high, self.n))

    @property
    def signed(self) -> str:
        """With a sign, for differences."""
        text = str(self)
        return text if self.value is None or self.value < 0 else f"+{text}"


class ReferenceEntry(_Entry):
    """What a metric is compared with."""

    value: NumberEntry
    difference: NumberEntry | None = Field(
        None, description="Metric minus reference, paired over the same studies; absent where they are not paired."
    )
    p: float | None = Field(None, description="Two-sided p-value of the difference.")
    test: str = Field("", description="The test that gave p.")


class MetricEntry(_Entry):
    """One metric."""

    name: str = Field(description="Key in the registry of metrics (`xgem eval metrics`).")
    of: str = Field("", description="Part of the set: a finding, a subgroup, a protocol; empty for the whole set.")
    extractor: str = Field("", description="Feature space, judge of images or labeller of reports.")
    weights: str = Field("", description="Hash or version of the extractor.")
    higher_is_better: bool | None = Field(None, description="null where neither direction is better.")
    value: NumberEntry | None = None
    not_computed: str = Field("", description="Why there is no value.")
    references: dict[str, ReferenceEntry] = Field(
        default_factory=dict,
        description="By name: shuffled (prompts of other studies), floor and ceiling (what real images reach), "
        "constant, template, retrieval, ridge (baselines), independent (outputs sampled separately), and others.",
    )
    share_of_ceiling: NumberEntry | None = Field(
        None, description="(value - shuffled) / (ceiling - shuffled): 0 is chance, 1 is as good as real images."
    )
    settings: dict[str, Any] = Field(default_factory=dict)


class FamilyEntry(_Entry):
    """All metrics of one family on one pair of sets."""

    family: str
    route: str = Field("", description="What the generated set was made from and is, such as report->frontal.")
    not_computed: str = Field("", description="Why nothing of this family was computed.")
    settings: dict[str, Any] = Field(default_factory=dict, description="Seed, sets with their n and hash, options.")
    metrics: list[MetricEntry]
    details: dict[str, Any] = Field(default_factory=dict, description="What is not a single number.")

    @property
    def title(self) -> str:
        return f"{self.family.capitalize()}, {self.route}" if self.route else self.family.capitalize()


class Record(_Entry):
    """One run of `xgem eval`."""

    format: Literal["xgem-measures"] = FORMAT
    format_version: Literal[2] = FORMAT_VERSION
    xgem: str = Field(description="Version of xgem.")
    python: str = ""
    time: str = Field("", description="UTC, ISO 8601.")
    settings: dict[str, Any] = Field(default_factory=dict, description="What all families share, such as the model.")
    families: list[FamilyEntry]

    def json_text(self) -> str:
        """The text of the record file: without empty fields, numbers that are not finite as null."""
        head = {"format": self.format, "format_version": self.format_version}
        return json.dumps(head | self.model_dump(exclude_defaults=True), indent=2, ensure_ascii=False) + "\n"


def json_schema() -> dict[str, Any]:
    """JSON Schema (2020-12) of :class:`Record`."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Record.model_json_schema()}


def record_of(results: Sequence[FamilyResult], settings: Mapping[str, Any] | None = None) -> Record:
    """The record of several families; ``settings`` are those that they share."""
    return Record(
        xgem=__version__,
        python=platform.python_version(),
        time=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        settings=finite(settings or {}),
        families=[family_entry(result) for result in results],
    )


def family_entry(result: FamilyResult) -> FamilyEntry:
    """A family's entry in the record, without plots, examples and tables."""
    return FamilyEntry(
        family=result.family,
        route=result.route,
        not_computed=result.reason,
        settings=finite(result.settings),
        metrics=[_metric(metric) for metric in result.metrics],
        details=finite(result.details),
    )


def _metric(metric: Metric) -> MetricEntry:
    return MetricEntry(
        name=metric.name,
        of=metric.of,
        extractor=metric.extractor,
        weights=metric.weights,
        higher_is_better=metric.higher_is_better,
        value=_number(metric.value),
        not_computed=metric.reason,
        references={name: _reference(reference) for name, reference in metric.references.items()},
        share_of_ceiling=_number(metric.share_of_ceiling),
        settings=finite(metric.settings),
    )


def _reference(reference: Reference) -> ReferenceEntry:
    value = _number(reference.value)
    assert value is not None
    return ReferenceEntry(
        value=value, difference=_number(reference.difference), p=finite(reference.p), test=reference.test
    )


def _number(estimate: Estimate | None) -> NumberEntry | None:
    return None if estimate is None else NumberEntry(**finite(estimate.as_dict()))


def read_record(path: str | Path) -> Record:
    """Read a run's JSON record, of this format or of format 1.

    Raises:
        DataError: not a record, or one of another version.
    """
    try:
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a readable JSON record ({error})") from None
    head = (content.get("format"), content.get("format_version")) if isinstance(content, dict) else (None, None)
    if head[0] != FORMAT or head[1] not in (1, FORMAT_VERSION):
        raise DataError(f"{path}: expected a record of format {FORMAT} {FORMAT_VERSION}")
    try:
        return Record.model_validate(_upgraded(content) if head[1] == 1 else content)
    except (ValidationError, KeyError, TypeError, AttributeError) as error:
        lines = str(error).splitlines()
        raise DataError(f"{path}: not a valid record of format {FORMAT} {head[1]} ({'; '.join(lines[:3])})") from None


def _upgraded(content: dict[str, Any]) -> dict[str, Any]:
    """A record of format 1, converted to this format."""
    families: list[dict[str, Any]] = []
    for family in content["families"]:
        metrics = [_upgraded_metric(metric) for metric in family["metrics"]]
        families.append({**family, "metrics": [metric for metric in metrics if metric is not None]})
    return {**content, "format_version": FORMAT_VERSION, "families": families}


def _upgraded_metric(metric: Mapping[str, Any]) -> dict[str, Any] | None:
    """Format 1 had the judge before the name, values without nesting, and paired differences among the references."""
    # The name, without the judge
    judge, _, name = metric["name"].rpartition(" ") if metric["name"].startswith(_JUDGES) else ("", "", metric["name"])
    name = key_of(name).replace(":", "").replace("auc_", "auroc_") if name != "auc" else "auroc"
    name = _RENAMED.get(name, name)
    if not registered(name):
        return None
    extractor, weights = metric.get("extractor", ""), metric.get("weights", "")
    if judge and extractor.startswith(f"{judge} ") and not weights:
        weights = extractor
    # The value, and references with their differences
    upgraded: dict[str, Any] = {
        "name": name,
        "of": metric.get("of", ""),
        "extractor": judge or extractor,
        "weights": weights,
        "higher_is_better": spec(name).higher_is_better,
        "not_computed": metric.get("not_computed", ""),
        "settings": metric.get("settings", {}),
    }
    if "n" in metric:
        low, high = metric["interval"]
        upgraded["value"] = {"value": metric["value"], "low": low, "high": high, "n": metric["n"]}
    references: dict[str, dict[str, Any]] = metric.get("references", {})
    upgraded["references"] = {
        key: {"value": number, "difference": references.get(f"less {key}")}
        for key, number in references.items()
        if not key.startswith("less ")
    }
    return upgraded


_JUDGES: Final = ("xgem-classifier ", "xgem-rules ", "xrv ", "CheXbert ")
_RENAMED: Final = {
    "share_of_empty_reports": "empty_reports",
    "pearson_r": "pearson",
    "weighted_f1": "f1_weighted",
    "weighted_f1_gap": "f1_weighted_gap",
    "weighted_f1_worst_group": "f1_weighted_worst_group",
    "weighted_f1_r_of_real_and_synthetic": "f1_weighted_group_correlation",
    "auroc_macro_r_of_real_and_synthetic": "auroc_macro_group_correlation",
}
