"""Bias on real and matched synthetic test images, and its mitigation (ChexGen, Fig. 5)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from xgem.data.sets import EvalSet
from xgem.eval.record import FamilyResult
from xgem.eval.schema import FamilyEntry
from xgem.eval.suite import fairness
from xgem.eval.utility.protocols import refuse_overlap
from xgem.experiments.papers import synthetic
from xgem.experiments.papers.plans import Fairness
from xgem.experiments.papers.steps import Bench, manifest_splits, need
from xgem.experiments.papers.tables import Table, find
from xgem.judges.tasks.classification import Classification
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.types import InputError

_VIEW: Final = "frontal"
_KEY: Final = "f1_weighted"


def check(bench: Bench, settings: Fairness) -> None:
    """Refuse data without labels, sexes, ages or races in their splits.

    Raises:
        DataError: a split or an axis is missing, or splits share patients. InputError: no labels, or no model.
    """
    data = bench.manifest(None)
    splits = ("train", settings.test_split, *(("val",) if settings.top_up == "worst" else ()))
    manifest_splits(data, *splits)
    if not settings.models:
        raise InputError(f"{bench.plan.name}: no model to generate with; name one (models:)")
    task = Classification(settings.network.utility("classification"), settings.classes or CHEXPERT_CLASSES)
    sets = {split: task.usable(_read(bench, settings, split)) for split in splits}
    for split, items in sets.items():
        for axis in settings.axes:
            known = any(getattr(item, axis) is not None for item in items.items)
            need(known, f"{data}: no study of split {split!r} has its {axis}; give it, or leave the axis out (axes)")
    refuse_overlap(sets["train"], sets[settings.test_split])


def _read(bench: Bench, settings: Fairness, split: str) -> EvalSet:
    return bench.read(bench.manifest(None), split, view=_VIEW, classes=_labelled(settings))


def _labelled(settings: Fairness) -> tuple[str, ...]:
    """All classes that items have labels of, as an image without any of the settings' may still be a normal one."""
    return tuple(dict.fromkeys((*(settings.classes or ()), *CHEXPERT_CLASSES)))


def run(bench: Bench, settings: Fairness) -> list[Table]:
    """One step a model and axis: subgroups of each axis are topped up by themselves, as the paper does."""
    tables: list[Table] = []
    for number, model in enumerate(settings.models):
        suffix = f", {model}" if number else ""
        found = {
            axis: bench.step(f"{model}-{axis}", lambda model=model, axis=axis: _measured(bench, settings, model, axis))
            for axis in settings.axes
        }
        if len(settings.axes) > 1:
            found[" x ".join(settings.axes)] = bench.step(
                f"{model}-all", lambda model=model: _measured(bench, settings, model, *settings.axes)
            )
        tables += [_groups(found, suffix), *_mitigated(found, suffix)]
    return tables


def _measured(bench: Bench, settings: Fairness, model: str, *axes: str) -> list[FamilyResult]:
    data, known = bench.manifest(None), _labelled(settings)
    options: dict[str, Any] = {"inputs": settings.inputs, "view": _VIEW}

    def made(split: str, **more: Any) -> EvalSet:
        folder = synthetic.generated(bench, model, data, split=split, **options, **more)
        return synthetic.with_studies(synthetic.existing(str(folder), known, _VIEW), data, known)

    training = made("train", count=settings.samples, limit=settings.limit)
    result = fairness(
        _read(bench, settings, "train"),
        replace(training, name=model),
        _read(bench, settings, settings.test_split),
        settings.network.utility("classification", draws=settings.bootstrap, seed=settings.seed),
        axes=axes,
        share=settings.share,
        classes=settings.classes or CHEXPERT_CLASSES,
        matched=made(settings.test_split),
        held_out=_read(bench, settings, "val") if settings.top_up == "worst" else None,
        min_n=settings.min_n,
        cache=bench.cache,
        device=bench.place,
    )
    return [replace(result, route=" x ".join(axes))]


def _groups(found: dict[str, list[FamilyEntry]], suffix: str) -> Table:
    """Weighted F1 of every subgroup on real and on synthetic images."""
    table = Table(f"groups{suffix}", f"Weighted F1 by subgroup, on real and on matched synthetic images{suffix}")
    for axis, families in found.items():
        for family in families:
            for metric in family.metrics:
                head, _, group = metric.of.partition(f", {axis}: ")
                if metric.name == _KEY and group and head.startswith("real"):
                    table.put(
                        group, head.replace("real, ", "") if "," in head else "real images", _cell(family, metric.of)
                    )
    return table


def _cell(family: FamilyEntry, of: str) -> Any:
    return find([family], _KEY, of=of)


def _mitigated(found: dict[str, list[FamilyEntry]], suffix: str) -> Iterator[Table]:
    """Correlation of subgroups, worst subgroup and gap, before and after topping up."""
    table = Table(f"mitigation{suffix}", f"Weighted F1: correlation over subgroups, worst subgroup, gap{suffix}")
    for axis, families in found.items():
        columns: Sequence[tuple[str, str, str]] = (
            ("r, real and synthetic", "group_correlation", "real"),
            ("worst, real", "worst_group", "real"),
            ("worst, topped up", "worst_group", "topped up"),
            ("gap, real", "gap", "real"),
            ("gap, topped up", "gap", "topped up"),
        )
        for title, key, name in columns:
            table.put(axis, title, find(families, f"{_KEY}_{key}", of=f"{name}, {axis}"))
    yield table
