"""Do generated images show what their studies say? AUC, F1 and Pearson's r by every judge, overall and by finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from xgem.data.sets import EvalSet
from xgem.eval import plots
from xgem.eval.pairing import as_table, described, numbers, one_each
from xgem.eval.record import Example, FamilyResult, Metric
from xgem.judges.judge import Judge, scores_of, thresholds_of
from xgem.labels.vocabulary import XGEM_10
from xgem.metrics.auc import AucScores, auc, auc_scores, compare_auc_scores
from xgem.metrics.bootstrap import Array, Bootstrap, Comparison, Estimate, Sampled, average
from xgem.metrics.classification import Uncertain, as_binary, compare_f1_by_class, compare_f1_scores
from xgem.metrics.correlation import compare_pearson
from xgem.types import InputError, NotComputed

FAMILY: Final = "factual"
CASES: Final = "factual_cases.csv"
FINDINGS: Final = "factual_findings.csv"
_WORST: Final = 8
_NO_POSITIVE: Final = "no study of this set is labelled with it"
_CONSTANT: Final = "the judge gives all images of one side the same score"


@dataclass(frozen=True)
class _Judged:
    """One judge's scores of both sets (n, classes), and the labels of those classes that have some."""

    judge: Judge
    real: Array
    generated: Array
    columns: tuple[int, ...]
    labels: Array

    @property
    def classes(self) -> tuple[str, ...]:
        """The findings that are scored against labels."""
        return tuple(self.judge.classes[k] for k in self.columns)


def evaluate(
    real: EvalSet,
    generated: EvalSet,
    *,
    judges: Mapping[str, Judge | NotComputed],
    uncertain: Uncertain = "ignore",
    blank: Literal["negative", "ignore"] = "ignore",
    size: int | None = None,
    draws: int = 1000,
    seed: int = 0,
    permutations: int = 10,
) -> FamilyResult:
    """Scores of generated images against their studies' labels and against those of the real images.

    Args:
        real: with images and labels, which are the truth.
        judges: by the name under which their numbers stand (:func:`xgem.judges.judge.train_judge`,
            :func:`~xgem.judges.xrv.load_xrv`); where one cannot be had, the reason in its place.
        uncertain, blank: what -1 and a label that is not mentioned count as; the paper scores a class only where its
            label is defined, which is ``ignore``.
        size: side at which images are read; None keeps their own.

    ``ceiling`` is the same judge on the real images. F1 counts a score above the judge's threshold as present.

    Raises:
        DataError: no generation with an image names a real study with one.
    """
    own_real, own = one_each(real.with_images(), generated.with_images())
    bootstrap = Bootstrap(len(own), draws=draws, seed=seed)
    options = {"seed": seed, "permutations": permutations}
    ids = [item.id for item in own_real.items]
    metrics: list[Metric] = []
    rows: list[list[Any]] = []
    cases: dict[str, Array] = {}
    charts: dict[str, bytes] = {}
    examples: list[Example] = []
    for name, judge in judges.items():
        if isinstance(judge, NotComputed):
            metrics += [
                Metric.missing(f"{name} {one}", judge) for one in ("auc_macro", "f1_macro", "pearson_flattened")
            ]
            continue
        found = _judged(judge, own_real, own, uncertain, blank, size)
        parts = _against_labels(name, found, bootstrap, options)
        for part in (*parts, _against_real(name, found, bootstrap, options)):
            metrics += part.metrics
            rows += part.rows
            charts |= part.charts
        distance = np.abs(found.real - found.generated).mean(axis=1)
        cases[f"{name} score distance"] = distance
        examples += _worst(name, own_real, own, distance, size)
    heads = ["measure", "class", "n", "positives", "value", "low", "high", "shuffled", "ceiling"]
    settings = {
        "uncertain": uncertain,
        "not mentioned": blank,
        "size": size,
        "labels": own_real.labelled_by,
        "permutations": permutations,
        "judges": {
            name: {"classes": list(one.classes), "thresholds": thresholds_of(one).tolist(), "weights": one.weights}
            for name, one in judges.items()
            if not isinstance(one, NotComputed)
        },
    }
    return FamilyResult(
        FAMILY,
        metrics,
        described(real, generated, n=bootstrap.n, draws=draws, seed=seed, **settings),
        plots=charts,
        examples=examples,
        tables={
            FINDINGS: as_table(heads, rows),
            CASES: as_table(["id", *cases], zip(ids, *cases.values(), strict=True)),
        },
    )


def _judged(
    judge: Judge,
    real: EvalSet,
    generated: EvalSet,
    uncertain: Uncertain,
    blank: Literal["negative", "ignore"],
    size: int | None,
) -> _Judged:
    kept = tuple(k for k, name in enumerate(judge.classes) if name in XGEM_10)
    labels = as_binary(real.labels([judge.classes[k] for k in kept]), uncertain=uncertain, blank=blank)
    return _Judged(judge, scores_of(judge, real, size), scores_of(judge, generated, size), kept, labels)


@dataclass(frozen=True)
class _Part:
    metrics: list[Metric] = field(default_factory=list[Metric])
    rows: list[list[Any]] = field(default_factory=list[list[Any]])
    charts: dict[str, bytes] = field(default_factory=dict[str, bytes])


def _against_labels(name: str, found: _Judged, bootstrap: Bootstrap, options: Mapping[str, int]) -> list[_Part]:
    common = {"extractor": found.judge.name, "weights": found.judge.weights, "higher_is_better": True}
    scores, real = (one[:, found.columns] for one in (found.generated, found.real))
    try:
        aucs = compare_auc_scores(scores, found.labels, bootstrap, **options)
    except InputError as error:
        titles = [f"{name} {measure}_macro" for measure in ("auc", "f1")]
        return [_Part([Metric.missing(title, error, **common) for title in titles])]
    thresholds = thresholds_of(found.judge)[list(found.columns)]
    called, called_real = (np.where(one > thresholds, 1.0, 0.0) for one in (scores, real))
    f1s = compare_f1_scores(found.labels, called, bootstrap)
    f1_ceiling = compare_f1_scores(found.labels, called_real, bootstrap)
    auc_ceiling = auc_scores(real, found.labels, bootstrap)
    known = int(np.isfinite(found.labels).any(axis=1).sum())

    metrics: list[Metric] = []
    for mean in ("micro", "macro", "weighted"):
        compared: Comparison = getattr(aucs, mean)
        for title, one, ceiling in (
            (f"{name} auc_{mean}", compared, auc_ceiling[mean]),
            (f"{name} f1_{mean}", f1s[f"{mean}_f1"], f1_ceiling[f"{mean}_f1"].matched),
        ):
            value, references = numbers(one, n=known, beside={"ceiling": ceiling})
            metrics.append(Metric(title, value, references=references, **common))
    f1_by_class = compare_f1_by_class(found.labels, called, bootstrap)
    auc_best = [_auc(real[:, k], found.labels[:, k], bootstrap) for k in range(len(found.columns))]
    f1_best = [one and one.matched for one in compare_f1_by_class(found.labels, called_real, bootstrap)]
    by_auc = _by_finding(f"{name} auc", aucs.by_class, auc_best, found, common)
    by_f1 = _by_finding(f"{name} f1", [one or _NO_POSITIVE for one in f1_by_class], f1_best, found, common)
    roc = {f"{name}: ROC of generated images": _roc(found.classes, scores, found.labels, aucs)}
    return [_Part(metrics), by_auc, by_f1, _Part(charts=roc)]


def _by_finding(
    title: str,
    compared: Sequence[Comparison | str],
    ceilings: Sequence[Sampled | None],
    found: _Judged,
    common: Mapping[str, Any],
) -> _Part:
    """One number a finding, or the reason why there is none."""
    part = _Part()
    shown: dict[str, list[Estimate | None]] = {"generated": [], "ceiling": [], "shuffled": []}
    positives = [int(count) for count in (found.labels == 1).sum(axis=0)]
    for finding, one, ceiling, label, count in zip(
        found.classes, compared, ceilings, found.labels.T, positives, strict=True
    ):
        n = int(np.isfinite(label).sum())
        if isinstance(one, str):
            part.metrics.append(Metric.missing(title, one, of=finding, **common))
            beside: dict[str, Estimate] = {}
            value = None
        else:
            value, beside = numbers(one, n=n, beside={"ceiling": ceiling})
            part.metrics.append(Metric(title, value, of=finding, references=beside, **common))
        for series, estimate in zip(shown.values(), (value, *map(beside.get, ("ceiling", "shuffled"))), strict=True):
            series.append(estimate)
        part.rows.append(_row(title, finding, n, count, value, beside))
    part.charts[f"{title} by finding (n: positives)"] = plots.bars(found.classes, shown, label=title, counts=positives)
    return part


def _row(
    title: str, finding: str, n: int, positives: int | None, value: Estimate | None, beside: Mapping[str, Estimate]
) -> list[Any]:
    others = [beside[key].value if key in beside else None for key in ("shuffled", "ceiling")]
    number = [None, None, None] if value is None else [value.value, *value.interval]
    return [title, finding, n, positives, *number, *others]


def _auc(scores: Array, labels: Array, bootstrap: Bootstrap) -> Sampled | None:
    return auc(scores, labels, bootstrap) if {0.0, 1.0} <= set(labels) else None


def _roc(classes: Sequence[str], scores: Array, labels: Array, aucs: AucScores) -> bytes:
    from sklearn.metrics import roc_curve

    lines: dict[str, tuple[Array, Array]] = {}
    for k, (name, one) in enumerate(zip(classes, aucs.by_class, strict=True)):
        known = np.isfinite(labels[:, k])
        if isinstance(one, Comparison):
            false, true, _ = roc_curve(labels[known, k], scores[known, k])
            lines[f"{name} {one.matched.value:.2f} (n {known.sum()})"] = (false, true)
    return plots.curves(lines, x="false positives", y="true positives", diagonal=True)


def _against_real(name: str, found: _Judged, bootstrap: Bootstrap, options: Mapping[str, int]) -> _Part:
    """Pearson's r with the scores of the real images, pooled over all of the judge's classes and by class."""
    common = {"extractor": found.judge.name, "weights": found.judge.weights, "higher_is_better": True}
    part = _Part()
    pooled = compare_pearson(found.real, found.generated, bootstrap, **options)
    by_class = [
        compare_pearson(real, generated, bootstrap, **options)
        for real, generated in zip(found.real.T, found.generated.T, strict=True)
    ]
    varying = [one for one in by_class if np.isfinite(one.matched.value)]
    titles: dict[str, Comparison] = {f"{name} pearson_flattened": pooled}
    if varying:
        titles[f"{name} pearson_macro"] = Comparison(
            average([one.matched for one in varying]), average([one.shuffled for one in varying])
        )
    for title, one in titles.items():
        if np.isfinite(one.matched.value):
            value, references = numbers(one)
            part.metrics.append(Metric(title, value, references=references, **common))
        else:
            part.metrics.append(Metric.missing(title, _CONSTANT, **common))
    for finding, one in zip(found.judge.classes, by_class, strict=True):
        title = f"{name} pearson"
        if not np.isfinite(one.matched.value):
            part.metrics.append(Metric.missing(title, _CONSTANT, of=finding, **common))
            part.rows.append(_row(title, finding, bootstrap.n, None, None, {}))
            continue
        value, references = numbers(one)
        part.metrics.append(Metric(title, value, of=finding, references=references, **common))
        part.rows.append(_row(title, finding, bootstrap.n, None, value, references))
    return part


def _worst(name: str, real: EvalSet, generated: EvalSet, distance: Array, size: int | None) -> list[Example]:
    """The pairs whose scores lie farthest apart: the real image, then the generated one."""
    found: list[Example] = []
    for row in np.argsort(-distance, kind="stable")[:_WORST]:
        images = [one.subset([int(row)]).images(size)[0] for one in (real, generated)]
        caption = f"{name}: {real.items[row].id}, mean distance of scores {distance[row]:.2f}; real, generated"
        found.append(Example(caption, images))
    return found
