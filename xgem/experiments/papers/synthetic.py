"""Synthetic training images of an experiment: a cohort of a model, or an existing set, with what its studies say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from xgem.data.manifest import Manifest
from xgem.data.set_files import labels_of, read_set
from xgem.data.sets import EvalSet, Item
from xgem.experiments.papers.steps import Bench


def generated(
    bench: Bench,
    model: str,
    data: Path,
    *,
    split: str,
    inputs: Sequence[str],
    view: str,
    sections: Sequence[str] = ("impression",),
    count: int = 1,
    limit: int | None = None,
) -> Path:
    """The folder of a cohort of ``view`` by the model of that name, ``count`` images of each study of a split.

    Raises:
        InputError: the model cannot make it, or too few studies have the inputs.
        OutputError: the folder holds a cohort of another plan or checkpoint.
    """
    folder = f"{model}/{'_'.join(inputs)}_to_{view}"
    made = bench.cohorts(bench.model(model), folder, data, split, limit=limit, sections=tuple(sections))
    plan = made.plan(split, inputs, (view,), count=count)
    return made.made(plan)


def with_studies(items: EvalSet, data: Path, classes: Sequence[str]) -> EvalSet:
    """Every item with the labels, severity, sex, age and race of the study of ``data`` that it answers to (ChexGen)."""
    studies = {study.id: study for study in Manifest.read(data).studies()}

    def told(item: Item) -> Item:
        study = studies.get(item.pair or item.id)
        if study is None:
            return item
        known: dict[str, Any] = {"sex": study.sex, "age": study.age, "race": study.race}
        return replace(item, labels=labels_of(study, classes), severity=study.severity, **known)

    return replace(items, items=tuple(map(told, items.items)))


def of_classes(items: EvalSet, classes: Sequence[str], *, absent: bool) -> EvalSet:
    """Labels of ``classes`` alone. ``absent``: an item with any labels at all lacks those that it does not mention."""

    def kept(item: Item) -> dict[str, float]:
        if absent and item.labels:
            return {name: item.labels.get(name, 0.0) for name in classes}
        return {name: item.labels[name] for name in classes if name in item.labels}

    return replace(items, items=tuple(replace(item, labels=kept(item)) for item in items.items))


def existing(path: str, classes: Sequence[str], view: str) -> EvalSet:
    """A set that is there already: a cohort, a folder, a CSV or a manifest."""
    return read_set(path, view=view, pad=True, classes=classes, name=Path(path).stem)
