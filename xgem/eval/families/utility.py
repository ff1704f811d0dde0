"""What synthetic images are worth as training data, tested on real ones (CheXGenBench, XGeM, ChexGen)."""

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
# What is drawn class by class: the first of these that the task gives
_PER_CLASS = ("auroc", "positive_dice", "ap50")


def evaluate(
    real: EvalSet,
    synthetic: EvalSet,
    test: EvalSet,
    settings: UtilitySettings,
    *,
    suite: str = "augmentation",
    classes: Sequence[str] | None = None,
    studies: Mapping[str, Study] | None = None,
    suite_options: Mapping[str, Any] | None = None,
    cache: Path | None = None,
    device: str = "cpu",
) -> FamilyResult:
    """Train networks on real and synthetic images by the suite's protocols, and test them on real images.

    Args:
        real, synthetic: what may be trained on; ``test``: real images of other subjects.
        settings: the task and how its networks are trained (:func:`xgem.judges.settings.preset`).
        suite: one of :data:`xgem.eval.utility.protocols.SUITES`; ``suite_options`` are its amounts.
        classes: findings, structures or classes of boxes; by default CheXpert's, or all that ``real`` is annotated
            with. ``imbalance`` by default looks at the five commonest (XGeM, Table 9).
        studies: the studies with masks and boxes, by id (:func:`xgem.judges.tasks.data.studies_of`).
        cache: keeps every network's predictions, so that a stopped evaluation resumes.

    The metrics of every protocol have intervals over test cases and runs, and as reference the protocol that it is
    compared with. The difference of the task's headline metric has a bootstrap p; that of a score which every case has
    by itself (the Brier score of a classification) has Wilcoxon's p over cases. The two may differ: the Brier score
    also depends on how well probabilities are calibrated, an AUROC only on their order.

    Raises:
        DataError: training and test images overlap.
        InputError: unknown suite, structures or network; a set without targets.
    """
    from xgem.eval.utility.protocols import most_represented
    from xgem.eval.utility.protocols import suite as protocols_of
    from xgem.eval.utility.runner import run_protocols

    if suite == "imbalance" and settings.task == "classification" and classes is None:
        classes = most_represented(real, CHEXPERT_CLASSES)
    try:
        task = make_task(settings, real, classes, studies)
        real, synthetic, test = task.usable(real), task.usable(synthetic), task.usable(test)
        if suite in ("imbalance", "few-shot") and settings.task != "classification":
            raise InputError(f"suite {suite!r} is defined by findings: expected the task classification")
        protocols = protocols_of(suite, real, synthetic, task.classes, **(suite_options or {}))
        extra = _grad_cam(task) if settings.task == "classification" else None
        tested = run_protocols(
            task, protocols, (real, synthetic), test, cache=cache, device=device, extra=extra and ("gradcam", extra)
        )
        metrics, rows, values = _metrics(tested)
    except NotComputed as reason:
        return FamilyResult.missing(FAMILY, reason, settings={"settings": asdict(settings)})
    sets = {
        name: items.described | {"labelled_by": items.labelled_by}
        for name, items in (("real", real), ("synthetic", synthetic), ("test", test))
    }
    details: dict[str, Any] = {
        name: {
            "images": runs.size,
            "pretraining": runs.pretraining,
            "notes": list(runs.notes),
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
    """The task that the settings name; see :func:`evaluate`.

    Raises:
        InputError: a task of masks or boxes without ``studies``, or whose studies have none.
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

    own = [study for study in annotated(real, studies) if study is not None]
    if settings.task == "segmentation":
        from xgem.data.annotations import STRUCTURES
        from xgem.judges.tasks.segmentation import Segmentation

        there = {name for study in own for name in study.masks}
        return Segmentation(settings, classes or [name for name in STRUCTURES if name in there], studies)
    from xgem.data.annotations import BOX_CLASSES
    from xgem.judges.tasks.detection import Detection

    there = {box.label for study in own for box in study.boxes}
    return Detection(settings, classes or [name for name in BOX_CLASSES if name in there], studies)


def _metrics(tested: Tested) -> tuple[list[Metric], list[dict[str, Any]], dict[str, dict[str, list[float]]]]:
    """The record's metrics, the table's rows, and every run's values."""
    from xgem.eval.utility.runner import bootstrap_p

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
    """The score that each test case has by itself, with Wilcoxon's test of what the protocol adds to another."""
    from xgem.eval.utility.runner import pool

    task, cases = tested.task, tested.cases(name)
    key, seed = key_of(task.per_case), tested.task.settings.seed
    settings = _over_runs([bootstrap.mean(run).value for run in cases])
    if against not in tested.runs:
        return Metric.measured(key, pool(list(map(bootstrap.mean, cases)), seed), of=name, settings=settings, **network)
    others = tested.cases(against)
    # Cases that either protocol gives no score are left out of both
    both = np.isfinite(cases) & np.isfinite(others)
    own, other = (
        pool([bootstrap.mean(run) for run in np.where(both, scores, np.nan)], seed) for scores in (cases, others)
    )
    difference = cases.mean(axis=0) - others.mean(axis=0)
    _, _, p, _ = signed_ranks(difference[np.isfinite(difference)])
    options = {"paired": {against: other}, "tests": {against: (p, "Wilcoxon")}, "of": name, "settings": settings}
    return Metric.measured(key, own, **options, **network)


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
    per_class = next((key for key in _PER_CLASS if any(metric.name == key for metric in metrics)), None)
    if per_class and len(names) <= 6:
        of = [name for name in tested.task.classes if values.get((per_class, f"{names[0]}, {name}"))]
        if of:
            series = {name: [values.get((per_class, f"{name}, {part}")) for part in of] for name in names}
            title = spec(per_class).label
            drawn[f"{title} by class"] = plots.bars(of, series, label=title)
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, runs in tested.runs.items():
        value = values.get((headline, name))
        if runs.protocol.line and value is not None:
            lines.setdefault(runs.protocol.line, []).append((runs.protocol.at, value.value))
    if any(len(points) > 1 for points in lines.values()):
        curves = {line: tuple(map(list, zip(*sorted(points), strict=True))) for line, points in lines.items()}
        amount = "times as many synthetic images" if "with synthetic" in lines else "real images (% or shots)"
        drawn[f"{label} by amount"] = plots.curves({k: (x, y) for k, (x, y) in curves.items()}, x=amount, y=label)
    return drawn


def _shown(test: Data) -> list[tuple[int, int]]:
    """Test images to look at, each with a class that it shows: the first of each class, no image twice."""
    classes: dict[int, int] = {}
    for k, labels in enumerate(test.targets["labels"].T):
        row = next((int(row) for row in np.flatnonzero(labels == 1) if int(row) not in classes), None)
        if row is not None and len(classes) < _SHOWN:
            classes[row] = k
    return list(classes.items())


def _grad_cam(task: Task) -> Extra:
    """Grad-CAM of the shown test images, for the runner to ask of each protocol's first network."""

    def ask(network: torch.nn.Module, test: Data, device: torch.device) -> Predictions:
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

    return ask


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
