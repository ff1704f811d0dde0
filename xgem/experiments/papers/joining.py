"""Joint generation with and without alignment, and with other losses of it: XGeM's Table 7 and Fig. 5."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from xgem.eval.joint import evaluate_joint
from xgem.eval.record import FamilyResult
from xgem.eval.routes import RunSettings
from xgem.eval.schema import FamilyEntry, MetricEntry
from xgem.experiments.papers.plans import Joint
from xgem.experiments.papers.steps import Bench, manifest_splits
from xgem.experiments.papers.tables import Cell, Table
from xgem.types import InputError

INDEPENDENT: Final = "independent"
_GENERATED: Final = "generated"


def check(bench: Bench, settings: Joint) -> None:
    """Refuse data without the splits.

    Raises:
        DataError: a split is missing. InputError: no model.
    """
    manifest_splits(bench.manifest(None), settings.test_split, "train")
    if not settings.models:
        raise InputError(f"{bench.plan.name}: no models to compare; name some (models:)")


def run(bench: Bench, settings: Joint) -> list[Table]:
    """One step a model; the tables have a row a route."""
    found = {name: bench.step(name, lambda name=name: _measured(bench, settings, name)) for name in settings.models}
    return list(_tables(found))


def _measured(bench: Bench, settings: Joint, name: str) -> list[FamilyResult]:
    how = RunSettings(
        sampling=settings.generating.sampling(settings.limit),
        bootstrap=settings.bootstrap,
        judge=settings.judged.judge,
    )
    options: dict[str, Any] = {"cache": bench.cache, "device": bench.device, "progress": bench.progress}
    out = bench.out / "cohorts" / name
    model, data = bench.model(name), bench.manifest(None)
    return evaluate_joint(model, data, out, split=settings.test_split, settings=how, quality=False, **options)[1]


def _tables(found: Mapping[str, Sequence[FamilyEntry]]) -> Iterator[Table]:
    """Cosines by route, each model's joint and independent outputs, and the distribution of Hamming distances."""
    cosine = Table("cosine", "Cosine of the outputs of one request")
    hamming = Table("hamming", "Hamming distance of the findings of frontal and report: share of studies")
    mean = Table("hamming_mean", "Hamming distance of the findings of image and report: mean")
    for model, families in found.items():
        for family in (one for one in families if one.family == "consistency" and not one.not_computed):
            for metric in family.metrics:
                table = {"cosine": cosine, "hamming": mean}.get(metric.name)
                if table is None:
                    continue
                row = f"{family.route} {metric.of}".strip()
                table.put(row, f"{INDEPENDENT}, {model}", _independent(metric))
                table.put(row, f"joint, {model}", Cell.of(metric))
            if family.route == "L->F+T":
                for source, kept in ((INDEPENDENT, INDEPENDENT), ("joint", _GENERATED)):
                    for distance, cell in enumerate(_shares(family.details, kept)):
                        hamming.put(f"{source}, {model}", str(distance), cell)
    yield cosine
    yield mean
    yield hamming


def _independent(metric: MetricEntry) -> Cell:
    reference = metric.references.get(INDEPENDENT)
    if reference is None:
        return Cell(reason=metric.not_computed or "no independent outputs")
    number = reference.value
    return Cell(number.value, low=number.low, high=number.high, n=number.n)


def _shares(details: Mapping[str, Any], source: str) -> list[Cell]:
    """Shares of studies at distance 0, 1, ... by the details of a consistency."""
    kept = next((value for name, value in details.items() if "studies at distance" in name), {})
    counts: Sequence[float] = kept.get(source, [])
    total = sum(counts)
    return [Cell(count / total, n=round(total)) for count in counts] if total else []
