"""Networks trained with and without synthetic images: XGeM's Tables 8 to 11, ChexGen's augmentation and pretraining."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from xgem.data.manifest import Manifest
from xgem.data.sets import EvalSet
from xgem.data.study import Study
from xgem.eval.families import utility
from xgem.eval.record import FamilyResult
from xgem.eval.schema import FamilyEntry
from xgem.eval.utility.protocols import joined, refuse_overlap
from xgem.experiments.papers import synthetic
from xgem.experiments.papers.plans import Downstream, Task
from xgem.experiments.papers.steps import Bench, manifest_splits, need
from xgem.experiments.papers.tables import Cell, Table, find
from xgem.judges.settings import UtilitySettings
from xgem.judges.tasks.data import studies_of
from xgem.labels.vocabulary import CHEXPERT_CLASSES

TEST: Final = "test"
_SCORES: Final = ("auroc_micro", "auroc_macro", "auroc_weighted", "f1_micro", "f1_macro", "f1_weighted")
_BY_TASK: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "classification": (("auroc",), ("auroc_macro", "brier_score")),
    "segmentation": (
        ("positive_dice", "negative_dice"),
        ("dice_macro", "positive_dice", "negative_dice", "dice_by_image"),
    ),
    "detection": (("ap50", "ar50"), ("map50", "mar50", "f1_by_image")),
    "severity": ((), ("mae", "mse", "pearson", "absolute_error")),
}
"""Of each task: metrics of a class, and of the whole; the last one has the test over cases."""
_HEADLINES: Final = {
    "classification": "auroc_macro", "segmentation": "dice_macro", "detection": "map50", "severity": "mae",
}  # fmt: skip
_TITLES: Final = {
    "auroc_micro": "AUROC Micro", "auroc_macro": "AUROC Macro", "auroc_weighted": "AUROC Weighted",
    "f1_micro": "F1 Micro", "f1_macro": "F1 Macro", "f1_weighted": "F1 Weighted",
    "auroc": "AUROC", "ap50": "AP50", "ar50": "AR50", "map50": "mAP50", "mar50": "mAR50", "mae": "MAE", "mse": "MSE",
    "pearson": "Pearson's r", "positive_dice": "Positive Dice", "negative_dice": "Negative Dice", "dice_macro": "Dice",
    "brier_score": "Brier score", "dice_by_image": "Dice by image", "f1_by_image": "F1 by image",
    "absolute_error": "absolute error",
}  # fmt: skip


@dataclass(frozen=True)
class Sets:
    """The real sets of a task, read and checked. ``tests``: the test set, then external ones; ``labelled``: all classes
    that items have labels of, as an image without any of the task's may still be a normal one.
    """

    data: Path
    prompts: Path
    real: EvalSet
    tests: Mapping[str, EvalSet]
    settings: UtilitySettings
    labelled: tuple[str, ...]
    studies: Mapping[str, Study]


def check(bench: Bench, settings: Downstream) -> None:
    """Refuse data that lack what a task needs, before anything is trained.

    Raises:
        DataError: a split is missing, a class without positives, sets that share patients.
        InputError: a set without labels, masks, boxes or severity.
    """
    for task in settings.tasks.values():
        sets_of(bench, settings, task)


def sets_of(bench: Bench, settings: Downstream, task: Task) -> Sets:
    """The real sets of a task, checked as :func:`check` says."""
    data = bench.manifest(task.data)
    prompts = data if task.prompts is None else bench.manifest(task.prompts)
    manifest_splits(data, "train", settings.test_split)
    manifest_splits(prompts, "train")
    classes = task.classes or (CHEXPERT_CLASSES if task.task == "classification" else ())
    known = tuple(dict.fromkeys((*classes, *task.prompt_classes, *CHEXPERT_CLASSES)))
    options: dict[str, Any] = {"view": task.view, "classes": known}
    real = bench.read(data, "train", **options)
    tests = {TEST: bench.read(data, settings.test_split, **options)}
    for name, path in task.external.items():
        place = bench.manifest(path)
        manifest_splits(place, "test")
        tests[name] = replace(bench.read(place, "test", **options), name=name)
    how = task.network.utility(task.task, draws=settings.bootstrap, seed=settings.seed)
    if task.classes and task.task == "classification":
        absent = how.unmentioned == "negative"
        real = synthetic.of_classes(real, classes, absent=absent)
        tests = {name: synthetic.of_classes(items, classes, absent=absent) for name, items in tests.items()}
        how = replace(how, unmentioned="unknown")  # all that is known is said by now
    spatial = task.task in ("segmentation", "detection")
    places = dict.fromkeys([data, prompts, *(bench.manifest(path) for path in task.external.values())])
    studies = studies_of(list(places)) if spatial else {}
    checker = utility.make_task(how, real, task.classes, studies or None)
    for items in (real, *tests.values()):
        checker.usable(items)
        if spatial:
            _with_annotations(task, items, studies)
    for items in tests.values():
        refuse_overlap(real, items)
        if prompts != data:
            refuse_overlap(bench.read(prompts, "train", **options), items)
    if task.task == "classification" and task.classes:
        _with_positives(task.classes, real, tests[TEST])
    return Sets(data, prompts, real, tests, how, known, studies)


def _with_positives(classes: Sequence[str], *sets: EvalSet) -> None:
    for items in sets:
        for name, positives in zip(classes, np.nansum(items.labels(classes) == 1, axis=0), strict=True):
            need(
                bool(positives),
                f"{items.name}: no image shows {name!r}, so it can be neither learned nor tested; leave the class out "
                "(classes), or give data that have it",
            )


def _with_annotations(task: Task, items: EvalSet, studies: Mapping[str, Study]) -> None:
    what = "mask" if task.task == "segmentation" else "box"
    shown = any(_annotated(studies[item.id], task) for item in items.items)
    need(
        shown,
        f"{items.name}: no image has a {what} of {' or '.join(task.classes or ['anything'])}; this task needs some",
    )


def run(bench: Bench, settings: Downstream) -> list[Table]:
    """One step a task and source of synthetic images."""
    tables: list[Table] = []
    for name, task in settings.tasks.items():
        sources = [*(task.models if task.models is not None else settings.models), *task.synthetic]
        found = {
            source: bench.step(
                f"{name}-{source}", lambda task=task, source=source: _measured(bench, settings, task, source)
            )
            for source in sources
        }
        tables += _tables(name, task, found)
        if task.suite == "imbalance":
            tables.append(_positives(name, found))
    return tables


def _measured(bench: Bench, settings: Downstream, task: Task, source: str) -> list[FamilyResult]:
    """The task with synthetic images of one source; every test set is a result, by its name as route."""
    sets = sets_of(bench, settings, task)
    known = sets.labelled
    if source in task.synthetic:
        images = synthetic.existing(task.synthetic[source], known, task.view)
    else:
        images = _generated(bench, task, source, sets)
    images = synthetic.with_studies(images, sets.prompts, known)
    if task.prompt_classes:
        images = synthetic.of_classes(images, task.prompt_classes, absent=True)
    elif task.classes and task.task == "classification":
        absent = task.network.utility(task.task).unmentioned == "negative"
        images = synthetic.of_classes(images, task.classes, absent=absent)
    results = utility.evaluate_sets(
        sets.real,
        replace(images, name=source),
        sets.tests,
        sets.settings,
        suite=task.suite,
        classes=task.classes,
        learned_too=task.prompt_classes,
        studies=sets.studies or None,
        suite_options=task.amounts,
        cache=bench.cache,
        device=bench.place,
    )
    return [replace(result, route=name) for name, result in results.items()]


def _generated(bench: Bench, task: Task, source: str, sets: Sets) -> EvalSet:
    """The synthetic images of a model: of studies with the inputs, and of those without a mask or box."""
    options: dict[str, Any] = {"split": "train", "view": task.view, "sections": task.sections, "count": task.samples}

    def made(inputs: Sequence[str]) -> EvalSet:
        folder = synthetic.generated(bench, source, sets.prompts, inputs=inputs, limit=task.limit, **options)
        return synthetic.existing(str(folder), sets.labelled, task.view)

    images = made(task.inputs)
    if not task.without:
        return images
    bare = {study.id for study in Manifest.read(sets.prompts).studies("train") if not _annotated(study, task)}
    parts = [
        one.subset([row for row, item in enumerate(one.items) if (item.pair in bare) == of_bare])
        for one, of_bare in ((images, False), (made(task.without), True))
    ]
    return joined(*parts)


def _annotated(study: Study, task: Task) -> bool:
    """Whether a study has a mask or box of the task's classes, or of any where it names none."""
    names = set(study.masks) if task.task == "segmentation" else {box.label for box in study.boxes}
    return bool(names & set(task.classes) if task.classes else names)


def _tables(name: str, task: Task, found: Mapping[str, Sequence[FamilyEntry]]) -> Iterator[Table]:
    """A table for each test set of a task, in the form of the suite's paper."""
    first = next(iter(found))
    for test in [family.route for family in found[first]]:
        where = "" if test == TEST else f", {test}"
        table = Table(f"{name}{where}", f"{name}{where}: {task.task}, {task.suite}")
        for source, families in found.items():
            family = next(one for one in families if one.route == test)
            suffix = "" if source == first else f" ({source})"
            if task.suite in ("anonymisation", "imbalance", "scarcity"):
                _by_protocol(table, task, family, suffix)
            elif task.suite == "augmentation":
                _by_class(table, task, family, suffix)
            else:
                _by_amount(table, task, family, suffix)
            for protocol in protocols_of(family):
                noted = family.details.get(protocol, {}).get("notes", ())
                table.notes += [f"{_row_of(task.suite, protocol)}{suffix}: {note}" for note in noted]
        yield table


def protocols_of(family: FamilyEntry) -> list[str]:
    """The protocols of a utility, in order; those that could not be trained stand last."""
    trained = [name for name, value in family.details.items() if isinstance(value, dict) and "values_by_run" in value]
    failed = [one.of for one in family.metrics if one.not_computed and one.of and ", " not in one.of]
    return list(dict.fromkeys([*trained, *(name for name in failed if name not in family.settings.get("classes", ()))]))


def _by_protocol(table: Table, task: Task, family: FamilyEntry, suffix: str) -> None:
    """A row a training set, as XGeM's tables."""
    per_class = [f"f1 {name}" for name in family.settings.get("classes", ())] if task.suite == "imbalance" else []
    for protocol in protocols_of(family) or ["real"]:
        row = _row_of(task.suite, protocol) + ("" if protocol == "real" else suffix)
        for metric in (*per_class, *_SCORES, "brier_score"):
            key, _, of = metric.partition(" ")
            title = f"F1 {of}" if of else _TITLES[key]
            table.put(row, title, _cell(family, task, protocol, key, of))


def _row_of(suite: str, protocol: str) -> str:
    if suite == "scarcity":
        multiple = protocol.partition(" + ")[2]
        return "all real" if protocol == "real" else f"{multiple or '0x'} synthetic"
    named = {"real": "Real", "anonymised": "Synthetic", "real + balance": "Real + Synthetic"}
    return named.get(protocol, protocol)


def _by_class(table: Table, task: Task, family: FamilyEntry, suffix: str) -> None:
    """A row a class or measure, a column a training set, as ChexGen's Extended Data Tables 6 to 9."""
    per_class, whole = _BY_TASK[task.task]
    known = family.settings.get("classes", [])
    for protocol in protocols_of(family) or ["real"]:
        if protocol == "synthetic":
            continue
        multiple = protocol.removeprefix("real + ")
        column = "Real" if protocol == "real" else f"Real+{multiple} Syn.{suffix}"
        for name in known if per_class else ():
            for key in per_class:
                title = name if len(per_class) == 1 else f"{name} {_TITLES[key]}"
                table.put(title, column, _cell(family, task, protocol, key, name))
        for key in whole:
            title = "Average" if key == "auroc_macro" else _TITLES[key]
            table.put(title, column, _cell(family, task, protocol, key))


def _cell(family: FamilyEntry, task: Task, protocol: str, key: str, of: str = "") -> Cell:
    """A metric of a protocol; of one that could not be trained, why."""
    headline = find([family], _HEADLINES[task.task], of=protocol)
    return headline if headline.reason else find([family], key, of=f"{protocol}, {of}" if of else protocol)


def _by_amount(table: Table, task: Task, family: FamilyEntry, suffix: str) -> None:
    """A row a share of real images or a number of shots, a column a multiple of synthetic ones."""
    for protocol in protocols_of(family):
        before, _, amount = protocol.rpartition(", ")
        column = f"{before}{suffix}" if before else "no synthetic"
        row = amount.removesuffix(" real")
        table.put(row, column, _cell(family, task, protocol, _HEADLINES[task.task]))
        for name in family.settings.get("classes", ()) if task.task == "classification" else ():
            cell = find([family], "auroc", of=f"{protocol}, {name}")
            if cell.value is not None:
                table.put(f"{row}, {name}", column, cell)


def _positives(name: str, found: Mapping[str, Sequence[FamilyEntry]]) -> Table:
    """How many training images show each class, in per cent, before (XGeM, Table 9) and after topping up."""
    table = Table(f"{name}, positives", "Positive images of the training set, in per cent")
    for number, (source, families) in enumerate(found.items()):
        family = next(iter(families))
        after = "after topping up (%)" + (f" ({source})" if number else "")
        for protocol, column in (("real", "Positive (%)"), ("real + balance", f"Positive {after}")):
            trained: dict[str, Any] = family.details.get(protocol, {})
            for of, count in trained.get("positives", {}).items():
                table.put(of, column, Cell(100 * count / trained["images"], n=trained["images"]))
    return table
