"""What synthetic images are worth as training data, tested on real ones (CheXGenBench, XGeM, ChexGen)."""

from __future__ import annotations

import csv
import io
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
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.metrics.bootstrap import Bootstrap, Estimate, Sampled
from xgem.types import InputError, NotComputed

if TYPE_CHECKING:
    import torch

    from xgem.eval.utility.runner import Extra, Tested
    from xgem.judges.settings import UtilitySettings
    from xgem.judges.tasks.data import Data
    from xgem.judges.tasks.task import Predictions, Task

FAMILY = "utility"
_SHOWN = 4
_IN_TABLE = ("protocol", "measure", "of", "value", "low", "high", "n", "sd_over_runs", "against", "difference")


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
    """Train networks on real and synthetic images as the suite's protocols say, and test them on real ones.

    Args:
        real, synthetic: what may be trained on; ``test``: real images of other subjects.
        settings: the task and how its networks are trained (:func:`xgem.judges.settings.preset`).
        suite: one of :data:`xgem.eval.utility.protocols.SUITES`; ``suite_options`` are its amounts.
        classes: findings, structures or classes of boxes; by default CheXpert's, or all that ``real`` is annotated
            with. ``imbalance`` by default looks at the five commonest (XGeM, Table 9).
        studies: where masks and boxes are found, by id (:func:`xgem.judges.tasks.data.studies_of`).
        cache: keeps every network's answers, so that a stopped evaluation goes on.

    Every protocol's measures stand with intervals over test cases and runs. Of the task's headline measure there is
    also the paired difference from the protocol that it is compared with, with a bootstrap p; and that of a score which
    every case has by itself (the Brier score of a classification), with Wilcoxon's p over cases. The two may differ:
    the Brier score also sees how well probabilities are calibrated, an AUROC only their order.

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
            raise InputError(f"suite {suite!r} goes by findings; expected the task classification")
        protocols = protocols_of(suite, real, synthetic, task.classes, **(suite_options or {}))
        extra = _looks(task) if settings.task == "classification" else None
        tested = run_protocols(
            task, protocols, (real, synthetic), test, cache=cache, device=device, extra=extra and ("gradcam", extra)
        )
        metrics, rows, values = _metrics(tested)
    except NotComputed as reason:
        return FamilyResult(FAMILY, [Metric.missing(settings.task, reason)], {"settings": asdict(settings)})
    sets = {
        name: one.described | {"labelled_by": one.labelled_by}
        for name, one in (("real", real), ("synthetic", synthetic), ("test", test))
    }
    details: dict[str, Any] = {
        name: {
            "images": one.size,
            "pretraining": one.pretraining,
            "notes": list(one.notes),
            "values_by_run": values[name],
        }
        for name, one in tested.runs.items()
    }
    details["subjects"] = {
        name: "known" if all(item.subject for item in one.items) else "not all known: overlap checked by id and image"
        for name, one in (("real", real), ("test", test))
    }
    return FamilyResult(
        FAMILY,
        metrics,
        {"suite": suite, "settings": asdict(settings), "classes": list(task.classes), "sets": sets},
        details,
        _plots(tested, metrics),
        _examples(tested),
        {f"utility_{settings.task}_{suite}.csv": _csv(rows)},
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
        raise InputError(f"{settings.task} needs the manifests' studies, where masks and boxes are; give studies")
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
    """The record's numbers, the table's rows, and every run's values."""
    task, bootstrap = tested.task, tested.bootstrap()
    found = {name: tested.measures(name, bootstrap) for name in tested.runs}
    judge: dict[str, Any] = {
        "extractor": f"{task.settings.network} {task.settings.size} px",
        "weights": task.settings.of_training()["weights"] or "",
    }
    metrics: list[Metric] = []
    rows: list[dict[str, Any]] = []
    for name, (measures, values) in found.items():
        against = tested.runs[name].protocol.against
        others = found[against][0] if against in found else {}
        for (measure, of), sampled in measures.items():
            better = measure not in task.lower_is_better
            label = f"{name}, {of}" if of else name
            spread = float(np.std(values[measure, of], ddof=1)) if len(values[measure, of]) > 1 else math.nan
            other = others.get((measure, of))
            difference = None if other is None else (sampled - other).estimate()
            references = {} if other is None else {against: other.estimate()}
            kept = {"runs": len(values[measure, of]), "sd_over_runs": spread}
            metrics.append(
                Metric(
                    measure,
                    sampled.estimate(),
                    of=label,
                    **judge,
                    higher_is_better=better,
                    references=references,
                    settings=kept,
                )
            )
            row = {"protocol": name, "measure": measure, "of": of, **sampled.estimate().as_dict(), "against": against}
            rows.append(row | {"sd_over_runs": spread} | _difference_columns(difference))
            if other is not None and measure == task.headline:
                added, tests = _compared(tested, name, against, sampled - other, bootstrap, judge)
                metrics += added
                rows[-1] |= tests
    metrics += [Metric.missing(task.headline, reason, of=name, **judge) for name, reason in tested.failed.items()]
    metrics += [Metric.missing(name, reason, of=of) for (name, of), reason in tested.task.missing(tested.test).items()]
    by_run = {
        name: {f"{measure} {of}".strip(): each for (measure, of), each in values.items()}
        for name, (_, values) in found.items()
    }
    return metrics, rows, by_run


def _compared(
    tested: Tested, name: str, against: str, difference: Sampled, bootstrap: Bootstrap, judge: Mapping[str, Any]
) -> tuple[list[Metric], dict[str, float]]:
    """What one protocol adds to another: in the headline measure, and case by case. Each with its own test."""
    from xgem.eval.utility.runner import bootstrap_p, pool
    from xgem.metrics.significance import signed_ranks

    task, of = tested.task, f"{name} - {against}"
    first, second = tested.cases(name), tested.cases(against)
    by_case = pool([bootstrap.mean(a - b) for a, b in zip(first, second, strict=True)], task.settings.seed)
    each = first.mean(axis=0) - second.mean(axis=0)
    _, _, p, _ = signed_ranks(each[np.isfinite(each)])
    tests = {"bootstrap_p": bootstrap_p(difference), "wilcoxon_p": p}
    return [
        Metric(
            f"{measure}: difference",
            one.estimate(),
            of=of,
            higher_is_better=measure not in task.lower_is_better,
            settings={test: tests[test]},
            **judge,
        )
        for measure, one, test in (
            (task.headline, difference, "bootstrap_p"),
            (task.per_case, by_case, "wilcoxon_p"),
        )
    ], tests


def _difference_columns(difference: Estimate | None) -> dict[str, float]:
    if difference is None:
        return {}
    return {"difference": difference.value, "difference_low": difference.low, "difference_high": difference.high}


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    stream = io.StringIO()
    columns = [*_IN_TABLE, "difference_low", "difference_high", "bootstrap_p", "wilcoxon_p"]
    table = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return stream.getvalue()


def _plots(tested: Tested, metrics: Sequence[Metric]) -> dict[str, bytes]:
    headline = tested.task.headline
    values = {(one.name, one.of): one.value for one in metrics}
    names = list(tested.runs)
    if not names:
        return {}
    found = {
        f"{headline} by protocol": plots.bars(
            names,
            {headline: [values.get((headline, name)) for name in names]},
            label=headline,
            counts=[one.size for one in tested.runs.values()],
        )
    }
    per_class = next((one for one in ("AUROC", "positive Dice", "AP50") if any(m.name == one for m in metrics)), None)
    if per_class and len(names) <= 6:
        of = [one for one in tested.task.classes if values.get((per_class, f"{names[0]}, {one}"))]
        if of:
            series = {name: [values.get((per_class, f"{name}, {one}")) for one in of] for name in names}
            found[f"{per_class} by class"] = plots.bars(of, series, label=per_class)
    lines: dict[str, list[tuple[float, float]]] = {}
    for name, runs in tested.runs.items():
        value = values.get((headline, name))
        if runs.protocol.line and value is not None:
            lines.setdefault(runs.protocol.line, []).append((runs.protocol.at, value.value))
    if any(len(points) > 1 for points in lines.values()):
        series_of = {line: ([x for x, _ in sorted(one)], [y for _, y in sorted(one)]) for line, one in lines.items()}
        amount = "times as many synthetic images" if "with synthetic" in lines else "real images (% or shots)"
        found[f"{headline} by amount"] = plots.curves(series_of, x=amount, y=headline)
    return found


def _shown(test: Data) -> list[tuple[int, int]]:
    """Test images to look at, each with a class that it shows: the first of each class, no image twice."""
    found: dict[int, int] = {}
    for k, labels in enumerate(test.targets["labels"].T):
        row = next((int(row) for row in np.flatnonzero(labels == 1) if int(row) not in found), None)
        if row is not None and len(found) < _SHOWN:
            found[row] = k
    return list(found.items())


def _looks(task: Task) -> Extra:
    """Grad-CAM of the shown test images, as the runner's extra question."""

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
    looked = {name: runs.extra["gradcam"] for name, runs in tested.runs.items() if "gradcam" in runs.extra}
    if not looked:
        return []
    heard = "Grad-CAM of networks trained on "
    return [
        Example(
            f"{tested.task.classes[k]}: the image; {heard}{'; '.join(looked)}",
            [tested.test.images[row], *(heat[place].astype(np.uint8) for heat in looked.values())],
        )
        for place, (row, k) in enumerate(_shown(tested.test))
    ]
