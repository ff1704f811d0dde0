"""Do generated images show their studies' findings? AUROC, F1 and Pearson's r by judge, overall and by finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np

from xgem.data.sets import EvalSet
from xgem.eval import plots
from xgem.eval.pairing import one_each, paired_settings
from xgem.eval.record import Example, FamilyResult, Metric
from xgem.eval.registry import spec
from xgem.judges.judge import Judge, scores_of, thresholds_of
from xgem.labels.vocabulary import XGEM_10
from xgem.metrics.auc import AucScores, auc, auc_scores, compare_auc_scores
from xgem.metrics.bootstrap import Array, Bootstrap, Comparison, Estimate, Sampled, average
from xgem.metrics.classification import Uncertain, as_binary, compare_f1_by_class, compare_f1_scores
from xgem.metrics.correlation import compare_pearson
from xgem.types import InputError, NotComputed
from xgem.utils.tables import csv_text

FAMILY: Final = "factual"
CASES: Final = "factual_cases.csv"
FINDINGS: Final = "factual_findings.csv"
_WORST: Final = 8
_NO_POSITIVE: Final = "no study of this set is labelled with it"
_CONSTANT: Final = "the judge gives all images of one side the same score"


@dataclass(frozen=True)
class _Judged:
    """One judge's scores of both sets (n, classes), and the labels of the classes in ``columns``."""

    name: str
    judge: Judge
    real: Array
    generated: Array
    columns: tuple[int, ...]
    labels: Array

    @property
    def extractor(self) -> dict[str, Any]:
        """Name and weights of the judge, for its metrics."""
        return {"extractor": self.name, "weights": self.judge.weights}

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
    """Scores of generated images against their studies' labels and against the scores of the real images.

    Args:
        real: studies with images, and labels as ground truth.
        judges: by the name under which their metrics are reported (:func:`xgem.judges.judge.train_judge`,
            :func:`~xgem.judges.xrv.load_xrv`), or the reason why one is not available.
        uncertain, blank: what -1 and an unmentioned label count as; the paper scores a class only where its label is
            defined, which is ``ignore``.
        size: side at which images are read; None keeps their own.

    The reference ``ceiling`` is the same judge on the real images. F1 counts a score above the judge's threshold as
    present.

    Raises:
        DataError: no generated image names a real study with an image.
    """
    # Judge by judge
    truth, outputs = one_each(real.with_images(), generated.with_images())
    bootstrap = Bootstrap(len(outputs), draws=draws, seed=seed)
    options = {"seed": seed, "permutations": permutations}
    all_of = _Part()
    cases: dict[str, Array] = {}
    examples: list[Example] = []
    for name, judge in judges.items():
        if isinstance(judge, NotComputed):
            all_of.metrics.extend(Metric.missing(key, judge, extractor=name) for key in _HEADLINES)
            continue
        judged = _judged(name, judge, truth, outputs, uncertain, blank, size)
        for part in (*_against_labels(judged, bootstrap, options), _against_real(judged, bootstrap, options)):
            all_of.metrics.extend(part.metrics)
            all_of.rows.extend(part.rows)
            all_of.charts.update(part.charts)
        distance = np.abs(judged.real - judged.generated).mean(axis=1)
        cases[f"{name} score distance"] = distance
        examples += _worst(name, truth, outputs, distance, size)
    settings = {
        "uncertain": uncertain,
        "not mentioned": blank,
        "size": size,
        "labels": truth.labelled_by,
        "permutations": permutations,
        "judges": {
            name: {
                "classes": list(judge.classes),
                "thresholds": thresholds_of(judge).tolist(),
                "weights": judge.weights,
            }
            for name, judge in judges.items()
            if not isinstance(judge, NotComputed)
        },
    }
    ids = [item.id for item in truth.items]
    return FamilyResult(
        FAMILY,
        all_of.metrics,
        paired_settings(real, generated, n=bootstrap.n, draws=draws, seed=seed, **settings),
        plots=all_of.charts,
        examples=examples,
        tables={
            FINDINGS: csv_text(_HEADS, all_of.rows),
            CASES: csv_text(["id", *cases], zip(ids, *cases.values(), strict=True)),
        },
    )


_HEADLINES: Final = ("auroc_macro", "f1_macro", "pearson_flattened")
_HEADS: Final = (
    "judge", "metric", "class", "n", "positives", "value", "low", "high", "shuffled", "ceiling"
)  # fmt: skip


def _judged(
    name: str,
    judge: Judge,
    real: EvalSet,
    generated: EvalSet,
    uncertain: Uncertain,
    blank: Literal["negative", "ignore"],
    size: int | None,
) -> _Judged:
    kept = tuple(k for k, name in enumerate(judge.classes) if name in XGEM_10)
    labels = as_binary(real.labels([judge.classes[k] for k in kept]), uncertain=uncertain, blank=blank)
    return _Judged(name, judge, scores_of(judge, real, size), scores_of(judge, generated, size), kept, labels)


@dataclass(frozen=True)
class _Part:
    metrics: list[Metric] = field(default_factory=list[Metric])
    rows: list[list[Any]] = field(default_factory=list[list[Any]])
    charts: dict[str, bytes] = field(default_factory=dict[str, bytes])


def _against_labels(judged: _Judged, bootstrap: Bootstrap, options: Mapping[str, int]) -> list[_Part]:
    """AUROC and F1 of the generated images' scores against the studies' labels: averages, and finding by finding."""
    scores, real = (values[:, judged.columns] for values in (judged.generated, judged.real))
    try:
        aucs = compare_auc_scores(scores, judged.labels, bootstrap, **options)
    except InputError as error:
        return [_Part([Metric.missing(f"{key}_macro", error, **judged.extractor) for key in ("auroc", "f1")])]
    thresholds = thresholds_of(judged.judge)[list(judged.columns)]
    predicted, predicted_real = (np.where(values > thresholds, 1.0, 0.0) for values in (scores, real))
    f1s = compare_f1_scores(judged.labels, predicted, bootstrap)
    f1_ceiling = compare_f1_scores(judged.labels, predicted_real, bootstrap)
    auc_ceiling = auc_scores(real, judged.labels, bootstrap)
    known = int(np.isfinite(judged.labels).any(axis=1).sum())

    # Averages over findings
    means = _Part()
    for mean in ("micro", "macro", "weighted"):
        compared: Comparison = getattr(aucs, mean)
        for key, comparison, ceiling in (
            (f"auroc_{mean}", compared, auc_ceiling[mean]),
            (f"f1_{mean}", f1s[f"{mean}_f1"], f1_ceiling[f"{mean}_f1"].matched),
        ):
            paired = {"ceiling": ceiling}
            means.metrics.append(Metric.measured(key, comparison, paired=paired, n=known, **judged.extractor))

    # Finding by finding
    f1_by_class = [result or _NO_POSITIVE for result in compare_f1_by_class(judged.labels, predicted, bootstrap)]
    auc_ceilings = [_auc(real[:, k], judged.labels[:, k], bootstrap) for k in range(len(judged.columns))]
    f1_ceilings = [one and one.matched for one in compare_f1_by_class(judged.labels, predicted_real, bootstrap)]
    by_auc = _by_finding("auroc", aucs.by_class, auc_ceilings, judged)
    by_f1 = _by_finding("f1", f1_by_class, f1_ceilings, judged)
    roc = {f"{judged.name}: ROC of generated images": _roc(judged.classes, scores, judged.labels, aucs)}
    return [means, by_auc, by_f1, _Part(charts=roc)]


def _by_finding(
    key: str, compared: Sequence[Comparison | str], ceilings: Sequence[Sampled | None], judged: _Judged
) -> _Part:
    """A metric for each finding, or the reason why there is none."""
    part = _Part()
    shown: dict[str, list[Estimate | None]] = {"generated": [], "ceiling": [], "shuffled": []}
    positives = [int(count) for count in (judged.labels == 1).sum(axis=0)]
    for finding, comparison, ceiling, labels, count in zip(
        judged.classes, compared, ceilings, judged.labels.T, positives, strict=True
    ):
        n = int(np.isfinite(labels).sum())
        options: dict[str, Any] = {"of": finding, **judged.extractor}
        if isinstance(comparison, str):
            metric = Metric.missing(key, comparison, **options)
        else:
            metric = Metric.measured(key, comparison, paired={"ceiling": ceiling}, n=n, **options)
        part.metrics.append(metric)
        part.rows.append(_row(metric, n, count))
        shown["generated"].append(metric.value)
        for name in ("ceiling", "shuffled"):
            reference = metric.references.get(name)
            shown[name].append(reference and reference.value)
    label = spec(key).label
    title = f"{judged.name}: {label} by finding (n: positives)"
    part.charts[title] = plots.bars(judged.classes, shown, label=label, counts=positives)
    return part


def _row(metric: Metric, n: int, positives: int | None) -> list[Any]:
    references = [metric.references.get(name) for name in ("shuffled", "ceiling")]
    numbers = [None, None, None] if metric.value is None else [metric.value.value, *metric.value.interval]
    return [
        *(metric.extractor, metric.name, metric.of, n, positives),
        *numbers,
        *(reference and reference.value.value for reference in references),
    ]


def _auc(scores: Array, labels: Array, bootstrap: Bootstrap) -> Sampled | None:
    return auc(scores, labels, bootstrap) if {0.0, 1.0} <= set(labels) else None


def _roc(classes: Sequence[str], scores: Array, labels: Array, aucs: AucScores) -> bytes:
    from sklearn.metrics import roc_curve

    lines: dict[str, tuple[Array, Array]] = {}
    for k, (name, result) in enumerate(zip(classes, aucs.by_class, strict=True)):
        known = np.isfinite(labels[:, k])
        if isinstance(result, Comparison):
            false_rate, true_rate, _ = roc_curve(labels[known, k], scores[known, k])
            lines[f"{name} {result.matched.value:.2f} (n {known.sum()})"] = (false_rate, true_rate)
    return plots.curves(lines, x="false positive rate", y="true positive rate", diagonal=True)


def _against_real(judged: _Judged, bootstrap: Bootstrap, options: Mapping[str, int]) -> _Part:
    """Pearson's r with the scores of the real images, pooled over all of the judge's classes, and by class."""
    pooled = compare_pearson(judged.real, judged.generated, bootstrap, **options)
    by_class = [
        compare_pearson(real, generated, bootstrap, **options)
        for real, generated in zip(judged.real.T, judged.generated.T, strict=True)
    ]
    varying = [result for result in by_class if np.isfinite(result.matched.value)]
    compared: list[tuple[str, str, Comparison]] = [("pearson_flattened", "", pooled)]
    if varying:
        macro = Comparison(average([r.matched for r in varying]), average([r.shuffled for r in varying]))
        compared.append(("pearson_macro", "", macro))
    compared += [("pearson", finding, result) for finding, result in zip(judged.judge.classes, by_class, strict=True)]
    part = _Part()
    for key, finding, comparison in compared:
        options_of: dict[str, Any] = {"of": finding, **judged.extractor}
        if np.isfinite(comparison.matched.value):
            metric = Metric.measured(key, comparison, **options_of)
        else:
            metric = Metric.missing(key, _CONSTANT, **options_of)
        part.metrics.append(metric)
        if finding:
            part.rows.append(_row(metric, bootstrap.n, None))
    return part


def _worst(name: str, real: EvalSet, generated: EvalSet, distance: Array, size: int | None) -> list[Example]:
    """The pairs with the largest differences of scores: the real image, then the generated one."""
    examples: list[Example] = []
    for row in np.argsort(-distance, kind="stable")[:_WORST]:
        images = [items.subset([int(row)]).images(size)[0] for items in (real, generated)]
        caption = f"{name}: {real.items[row].id}, mean distance of scores {distance[row]:.2f}; real, generated"
        examples.append(Example(caption, images))
    return examples
