"""Utility of synthetic images as training data, tested on real images (CheXGenBench, XGeM, ChexGen)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xgem.data.sets import EvalSet
from xgem.data.study import Study
from xgem.eval import plots
from xgem.eval.record import Example, FamilyResult, Metric
from xgem.eval.registry import key_of, spec
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.bootstrap import Bootstrap
from xgem.metrics.significance import signed_ranks
from xgem.types import InputError, NotComputed
from xgem.utils.tables import csv_text

if TYPE_CHECKING:
    import torch

    from xgem.eval.utility.runner import Extra, Tested
    from xgem.judges.settings import UtilitySettings
    from xgem.judges.tasks.data import Data
    from xgem.judges.tasks.task import Predictions, Task

FAMILY = "utility"
_SHOWN = 4
_HEADS = (
    "protocol", "metric", "of", "value", "low", "high", "n", "sd_over_runs", "against", "difference", "difference_low",
    "difference_high", "p", "test",
)  # fmt: skip
# The metric that is plotted class by class: the first of these that the task has
_PER_CLASS = ("auroc", "positive_dice", "ap50")


def evaluate(
    real: EvalSet, synthetic: EvalSet, test: EvalSet, settings: UtilitySettings, **options: Any
) -> FamilyResult:
    """As :func:`evaluate_sets`, on one test set."""
    return evaluate_sets(real, synthetic, {"test": test}, settings, **options)["test"]


def evaluate_sets(
    real: EvalSet,
    synthetic: EvalSet,
    tests: Mapping[str, EvalSet],
    settings: UtilitySettings,
    *,
    suite: str = "augmentation",
    classes: Sequence[str] | None = None,
    learned_too: Sequence[str] = (),
    studies: Mapping[str, Study] | None = None,
    suite_options: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    device: str = "cpu",
) -> dict[str, FamilyResult]:
    """Train networks on real and synthetic images by the suite's protocols, and test them on real images.

    Args:
        real, synthetic: images for training.
        tests: real images of other subjects, the test set first, and external ones; each gets a result of its name.
        settings: the task and the training settings of its networks (:func:`xgem.judges.settings.preset`).
        suite: one of :data:`xgem.eval.utility.protocols.SUITES`; ``suite_options`` are its amounts.
        classes: findings, structures or classes of boxes; by default CheXpert's, or all that ``real`` is annotated
            with; findings may be a source's own (``classes`` of :func:`xgem.data.set_files.read_set`). The default of
            ``imbalance`` is the five most frequent (XGeM, Table 9).
        learned_too: further findings that only the synthetic images are labelled with: pretraining teaches them too.
        studies: the studies with masks and boxes, by id (:func:`xgem.judges.tasks.data.studies_of`).
        cache: keeps every network's predictions, so that a stopped evaluation resumes.

    The metrics of every protocol have intervals over test cases and runs, and as reference the protocol that it is
    compared with. The difference of the task's headline metric has a bootstrap p, that of the score per case (the Brier
    score of a classification) Wilcoxon's p over cases. The two may disagree: the Brier score also depends on the
    calibration of the probabilities, the AUROC only on their order.

    Raises:
        DataError: training and test images overlap.
        InputError: unknown suite, structures or network; a set without targets.
    """
    from xgem.eval.utility.protocols import most_represented
    from xgem.eval.utility.protocols import suite as protocols_of
    from xgem.eval.utility.runner import run_protocols

    if suite == "imbalance" and settings.task == "classification" and classes is None:
        classes = most_represented(real, CHEXPERT_CLASSES)
    # Train and test
    try:
        task = make_task(settings, real, classes, studies)
        asked = task.classes
        if learned_too:
            task = make_task(settings, real, (*asked, *(name for name in learned_too if name not in asked)), studies)
        real, synthetic = task.usable(real), task.usable(synthetic)
        (first, test), *others = ((name, task.usable(one)) for name, one in tests.items())
        if suite in ("imbalance", "few-shot") and settings.task != "classification":
            raise InputError(f"suite {suite!r} is defined by findings: expected the task classification")
        protocols = protocols_of(suite, real, synthetic, asked, **(suite_options or {}))
        extra = _grad_cam(task) if settings.task == "classification" else None
        options: dict[str, Any] = {"cache": cache, "device": device, "extra": extra and ("gradcam", extra)}
        tested = run_protocols(task, protocols, (real, synthetic), test, also=dict(others), **options)
        named = {first: (test, tested)} | {name: (one, tested.also[name]) for name, one in others}
        return {name: _result(found, suite, (real, synthetic, one)) for name, (one, found) in named.items()}
    except NotComputed as reason:
        return {name: FamilyResult.missing(FAMILY, reason, settings={"settings": asdict(settings)}) for name in tests}


def _result(tested: Tested, suite: str, used: tuple[EvalSet, EvalSet, EvalSet]) -> FamilyResult:
    """The record of one test set; ``used``: the real, the synthetic and the test images."""
    task, settings = tested.task, tested.task.settings
    real, synthetic, test = used
    metrics, rows, values = _metrics(tested)
    sets = {
        name: items.described | {"labelled_by": items.labelled_by}
        for name, items in (("real", real), ("synthetic", synthetic), ("test", test))
    }
    details: dict[str, Any] = {
        name: {
            "images": runs.size,
            "pretraining": runs.pretraining,
            "notes": list(runs.notes),
            **({"positives": dict(runs.positives)} if runs.positives else {}),
            "values_by_run": values[name],
        }
        for name, runs in tested.runs.items()
    }
    details["subjects"] = {
        name: "known" if all(item.subject for item in items.items) else "not all known: overlap checked by id and image"
        for name, items in (("real", real), ("test", test))
    }
    return FamilyResult(
        FAMILY,
        metrics,
        {"suite": suite, "settings": asdict(settings), "classes": list(task.classes), "sets": sets},
        details,
        _plots(tested, metrics),
        _examples(tested),
        {f"utility_{settings.task}_{suite}.csv": csv_text(_HEADS, rows)},
    )


def make_task(
    settings: UtilitySettings,
    real: EvalSet,
    classes: Sequence[str] | None = None,
    studies: Mapping[str, Study] | None = None,
) -> Task:
    """The task of the settings; see :func:`evaluate`.

    Raises:
        InputError: a segmentation or detection without ``studies``, or with studies that have no masks or boxes.
    """
    if settings.task == "classification":
        from xgem.judges.tasks.classification import Classification

        return Classification(settings, classes or CHEXPERT_CLASSES)
    if settings.task == "severity":
        from xgem.judges.tasks.severity import Severity

        return Severity(settings)
    if studies is None:
        raise InputError(f"{settings.task} needs the masks or boxes of the manifests' studies; give studies")
    from xgem.judges.tasks.data import annotated

    real_studies = [study for study in annotated(real, studies) if study is not None]
    if settings.task == "segmentation":
        from xgem.data.annotations import STRUCTURES
        from xgem.judges.tasks.segmentation import Segmentation

        present = {name for study in real_studies for name in study.masks}
        return Segmentation(settings, classes or _ordered(present, STRUCTURES), studies)
    from xgem.data.annotations import BOX_CLASSES
    from xgem.judges.tasks.detection import Detection

    present = {box.label for study in real_studies for box in study.boxes}
    return Detection(settings, classes or _ordered(present, BOX_CLASSES), studies)


def _ordered(present: set[str], known: Sequence[str]) -> list[str]:
    """The names that are there: those that xgem knows in its order, then the others."""
    return [*(name for name in known if name in present), *sorted(present - set(known))]


def _metrics(tested: Tested) -> tuple[list[Metric], list[dict[str, Any]], dict[str, dict[str, list[float]]]]:
    """The metrics of the record, the rows of the table, and the values of every run."""
    from xgem.eval.utility.runner import bootstrap_p

    # Protocol by protocol: its metrics, with those of the protocol that it is compared with as reference
    task, bootstrap = tested.task, tested.bootstrap()
    pooled = {name: tested.measures(name, bootstrap) for name in tested.runs}
    network: dict[str, Any] = {
        "extractor": f"{task.settings.network} {task.settings.size} px",
        "weights": task.settings.of_training()["weights"] or "",
    }
    metrics: list[Metric] = []
    rows: list[dict[str, Any]] = []
    for name, (measures, values) in pooled.items():
        against = tested.runs[name].protocol.against
        others = pooled[against][0] if against in pooled else {}
        of_protocol: list[tuple[str, Metric]] = []
        for (measure, of), sampled in measures.items():
            other, tests = others.get((measure, of)), {}
            if other is not None and measure == task.headline:
                tests = {against: (bootstrap_p(sampled - other), "bootstrap")}
            label, settings = f"{name}, {of}" if of else name, _over_runs(values[measure, of])
            options = {"paired": {against: other}, "tests": tests, "of": label, "settings": settings, **network}
            of_protocol.append((of, Metric.measured(key_of(measure), sampled, **options)))
        of_protocol.append(("", _case_by_case(tested, name, against, bootstrap, network)))
        metrics += [metric for _, metric in of_protocol]
        rows += [_columns(name, of, metric, against) for of, metric in of_protocol]
    # What could not be computed
    metrics += [
        Metric.missing(key_of(task.headline), reason, of=name, **network) for name, reason in tested.failed.items()
    ]
    untested = tested.task.missing(tested.test)
    metrics += [Metric.missing(key_of(name), reason, of=of) for (name, of), reason in untested.items()]
    by_run = {
        name: {f"{key_of(measure)} {of}".strip(): runs for (measure, of), runs in values.items()}
        for name, (_, values) in pooled.items()
    }
    return metrics, rows, by_run


def _over_runs(values: Sequence[float]) -> dict[str, Any]:
    return {"runs": len(values), "sd_over_runs": float(np.std(values, ddof=1)) if len(values) > 1 else math.nan}


def _case_by_case(tested: Tested, name: str, against: str, bootstrap: Bootstrap, network: Mapping[str, Any]) -> Metric:
    """The score per test case, with Wilcoxon's test of the difference from the protocol compared with."""
    from xgem.eval.utility.runner import pool

    task, cases = tested.task, tested.cases(name)
    key, seed = key_of(task.per_case), tested.task.settings.seed
    settings = _over_runs([bootstrap.mean(run).value for run in cases])
    if against not in tested.runs:
        return Metric.measured(key, pool(list(map(bootstrap.mean, cases)), seed), of=name, settings=settings, **network)
    others = tested.cases(against)
    # A case without a score by either protocol is left out of both
    both = np.isfinite(cases) & np.isfinite(others)
    value, other = (
        pool([bootstrap.mean(run) for run in np.where(both, scores, np.nan)], seed) for scores in (cases, others)
    )
    difference = cases.mean(axis=0) - others.mean(axis=0)
    _, _, p, _ = signed_ranks(difference[np.isfinite(difference)])
    options = {"paired": {against: other}, "tests": {against: (p, "Wilcoxon")}, "of": name, "settings": settings}
    return Metric.measured(key, value, **options, **network)


def _columns(name: str, of: str, metric: Metric, against: str) -> dict[str, Any]:
    """A metric as a row of the table."""
    assert metric.value is not None
    row = {"protocol": name, "metric": metric.name, "of": of, **metric.value.as_dict(), "against": against}
    row["sd_over_runs"] = metric.settings["sd_over_runs"]
    reference = metric.references.get(against)
    if reference is None or reference.difference is None:
        return row
    difference = reference.difference
    row |= {"difference": difference.value, "difference_low": difference.low, "difference_high": difference.high}
    return row | {"p": reference.p, "test": reference.test}


def _plots(tested: Tested, metrics: Sequence[Metric]) -> dict[str, bytes]:
    """The headline metric by protocol, a metric by class, and curves over the amount of images."""
    headline = key_of(tested.task.headline)
    label = spec(headline).label
    values = {(metric.name, metric.of): metric.value for metric in metrics}
    names = list(tested.runs)
    if not names:
        return {}
    drawn = {
        f"{label} by protocol": plots.bars(
            names,
            {label: [values.get((headline, name)) for name in names]},
            label=label,
            counts=[runs.size for runs in tested.runs.values()],
        )
    }
    # By class, for a few protocols
    per_class = next((key for key in _PER_CLASS if any(metric.name == key for metric in metrics)), None)
    if per_class and len(names) <= 6:
        of = [name for name in tested.task.classes if values.get((per_class, f"{names[0]}, {name}"))]
        if of:
            series = {name: [values.get((per_class, f"{name}, {part}")) for part in of] for name in names}
            title = spec(per_class).label
            drawn[f"{title} by class"] = plots.bars(of, series, label=title)
    # Over the amount, for suites that vary it
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, runs in tested.runs.items():
        value = values.get((headline, name))
        if runs.protocol.line and value is not None:
            lines.setdefault(runs.protocol.line, []).append((runs.protocol.at, value.value))
    if any(len(points) > 1 for points in lines.values()):
        curves = {line: tuple(map(list, zip(*sorted(points), strict=True))) for line, points in lines.items()}
        amount = "synthetic images per real image" if "with synthetic" in lines else "real images (% or shots)"
        drawn[f"{label} by amount"] = plots.curves({k: (x, y) for k, (x, y) in curves.items()}, x=amount, y=label)
    return drawn


def _shown(test: Data) -> list[tuple[int, int]]:
    """Rows of test images to show, each with a class that it is positive for: the first one of each class."""
    classes: dict[int, int] = {}
    for k, labels in enumerate(test.targets["labels"].T):
        row = next((int(row) for row in np.flatnonzero(labels == 1) if int(row) not in classes), None)
        if row is not None and len(classes) < _SHOWN:
            classes[row] = k
    return list(classes.items())


def _grad_cam(task: Task) -> Extra:
    """A function that computes Grad-CAM of the shown test images for a trained network."""

    def maps(network: torch.nn.Module, test: Data, device: torch.device) -> Predictions:
        import torch

        from xgem.judges.networks import batches, last_layer
        from xgem.judges.tasks.gradcam import grad_cam

        shown = _shown(test)
        if not shown:
            return {}
        x = next(batches(test.images[[row for row, _ in shown]], task.settings.size, device, len(shown)))
        outputs = torch.tensor([k for _, k in shown], device=device)
        heat = grad_cam(network, last_layer(task.settings, network), x, outputs)
        return {"gradcam": np.rint(heat * 255).astype(np.uint8)}

    return maps


def _examples(tested: Tested) -> list[Example]:
    heat = {name: runs.extra["gradcam"] for name, runs in tested.runs.items() if "gradcam" in runs.extra}
    if not heat:
        return []
    networks = "; ".join(heat)
    return [
        Example(
            f"{tested.task.classes[k]}: the image; Grad-CAM of networks trained on {networks}",
            [tested.test.images[row], *(maps[place].astype(np.uint8) for maps in heat.values())],
        )
        for place, (row, k) in enumerate(_shown(tested.test))
    ]
