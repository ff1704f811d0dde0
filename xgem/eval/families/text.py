"""Generated reports against their studies' real ones: overlap of words, agreement of labels, entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from xgem.data.sets import EvalSet, pairs
from xgem.eval import plots
from xgem.eval.pairing import as_table, described, numbers, one_each
from xgem.eval.record import Example, FamilyResult, Metric
from xgem.judges.external_text import SCORES, ExternalMetric
from xgem.judges.report_labellers import LabelTable, ReportLabeller, RuleLabeller
from xgem.labels.vocabulary import CHEXPERT_CLASSES, CLASS_SETS
from xgem.metrics import text
from xgem.metrics.bootstrap import Array, Bootstrap, Comparison, Sampled, derangements
from xgem.metrics.classification import Uncertain, as_binary, columns, compare_f1_by_class, compare_f1_scores
from xgem.types import DataError, InputError, NotComputed

FAMILY: Final = "text"
CASES: Final = "text_cases.csv"
LABELS: Final = "text_labels.csv"
_WORST: Final = 8


@dataclass(frozen=True)
class Tables:
    """Precomputed labels of the reports by id: of the generated ones, and of the real ones."""

    generated: LabelTable
    real: LabelTable


@dataclass(frozen=True)
class _Labels:
    """Labels by one source, (n, 14) of 1, 0, -1, NaN; those of the constant report where the source can give them."""

    name: str
    version: str
    real: Array
    generated: Array
    constant: Array | None


def evaluate(
    real: EvalSet,
    generated: EvalSet,
    *,
    training: EvalSet | None = None,
    labellers: Mapping[str, ReportLabeller | Tables | NotComputed] | None = None,
    external: Mapping[str, ExternalMetric | NotComputed] | None = None,
    uncertain: Uncertain = "positive",
    draws: int = 1000,
    seed: int = 0,
    permutations: int = 10,
) -> FamilyResult:
    """BLEU, ROUGE-L, label F1 by every labeller, RadGraph-F1 and RaTEScore, and BLEU within a study.

    Args:
        training: real training reports: the most frequent of them is the constant baseline.
        labellers: by the name under which their F1 stands; by default xgem's own rules. Where one cannot be had, the
            reason stands in its place.
        external: ``radgraph`` and ``ratescore``; shuffled by one derangement, for each costs a run.
        uncertain: what -1 counts as; a class that a report does not mention counts as absent.

    An empty generated report counts as zero overlap and as no finding, and is counted.

    Raises:
        DataError: a real report is empty, or no generation has a report.
        InputError: an external metric of another name.
    """
    unknown = [name for name in external or {} if name not in SCORES]
    if unknown:
        raise InputError(f"external metric {unknown[0]!r}: expected {' or '.join(SCORES)}")
    if not any(report.strip() for report in generated.reports):
        raise DataError(f"{generated.name}: no report in it; these measures need a column report")
    own_real, own = one_each(real, generated)
    ids = [item.id for item in own_real.items]
    empty = text.check_reports(own.reports, own_real.reports, ids)
    bootstrap = Bootstrap(len(own), draws=draws, seed=seed)
    constant = text.most_frequent(training.reports) if training is not None else None
    options = {"seed": seed, "permutations": permutations}

    metrics = _overlap(own, own_real, constant, bootstrap, options)
    blank = np.array([not report.strip() for report in own.reports], dtype=np.float64)
    metrics.append(Metric("share of empty reports", bootstrap.mean(blank).estimate(), higher_is_better=False))
    rows: list[list[Any]] = []
    cases: dict[str, Array] = {"rouge_l": text.rouge_l(own.reports, own_real.reports)}
    charts: dict[str, bytes] = {}
    for name, labeller in (labellers or {RuleLabeller().name: RuleLabeller()}).items():
        if isinstance(labeller, NotComputed):
            metrics += [Metric.missing(f"{name} micro_f1_{scope}", labeller) for scope in CLASS_SETS]
            continue
        labels = _labels(name, labeller, own, own_real, constant)
        found, table, chart = _label_f1(labels, uncertain, bootstrap)
        metrics += found
        rows += table
        charts |= chart
        cases[f"{name} label agreement"] = _agreement(labels, uncertain)
    for name, metric in ({key: NotComputed(_NO_PYTHON.format(key)) for key in SCORES} | dict(external or {})).items():
        found, values = _external(name, metric, own, own_real, constant, bootstrap, seed)
        metrics += found
        cases |= values
    metrics += _within(real, generated, draws, seed)
    heads = ["source", "class", "n", "real", "generated", "f1", "low", "high", "shuffled"]
    return FamilyResult(
        FAMILY,
        metrics,
        described(
            real,
            generated,
            n=bootstrap.n,
            draws=draws,
            seed=seed,
            permutations=permutations,
            uncertain=uncertain,
            bleu=text.bleu_signature(),
            rouge_l=text.rouge_signature(),
            training=None if training is None else {"name": training.name, "n": len(training)},
        ),
        details={
            "empty generated reports": empty,
            "distinct generated reports": text.distinct(own.reports),
            "distinct real reports": text.distinct(own_real.reports),
            "constant report": constant,
        },
        plots=charts,
        examples=_worst(own, own_real, cases["rouge_l"]),
        tables={LABELS: as_table(heads, rows), CASES: as_table(["id", *cases], zip(ids, *cases.values(), strict=True))},
    )


_NO_PYTHON: Final = "no Python with the package was given (--{}-python)"


def _overlap(
    own: EvalSet, real: EvalSet, constant: str | None, bootstrap: Bootstrap, options: Mapping[str, int]
) -> list[Metric]:
    compared = text.compare_bleu(own.reports, real.reports, bootstrap, **options)
    compared["rouge_l"] = text.compare_mean(text.rouge_l, own.reports, real.reports, bootstrap, **options)
    baseline: dict[str, Sampled] = {}
    if constant is not None:
        same = [constant] * bootstrap.n
        statistics = bootstrap.weights @ text.bleu_statistics(same, real.reports)
        for order in range(1, text.MAX_ORDER + 1):
            baseline[f"bleu_{order}"] = bootstrap.sampled(text.bleu_from_statistics(statistics, order))
        baseline["rouge_l"] = bootstrap.mean(text.rouge_l(same, real.reports))
    found: list[Metric] = []
    for name, one in compared.items():
        value, references = numbers(one, beside={"constant": baseline.get(name)})
        found.append(Metric(name, value, references=references, higher_is_better=True))
    return found


def _labels(name: str, labeller: ReportLabeller | Tables, own: EvalSet, real: EvalSet, constant: str | None) -> _Labels:
    if isinstance(labeller, Tables):
        versions = f"{labeller.generated.name}, {labeller.real.name}"
        of_generated = labeller.generated.of([item.id for item in own.items])
        return _Labels(name, versions, labeller.real.of([item.id for item in real.items]), of_generated, None)
    fixed = None if constant is None else np.repeat(labeller.label([constant]), len(own), axis=0)
    version = f"{labeller.name} {labeller.version[:16]}"
    return _Labels(name, version, labeller.label(real.reports), labeller.label(own.reports), fixed)


def _label_f1(
    labels: _Labels, uncertain: Uncertain, bootstrap: Bootstrap
) -> tuple[list[Metric], list[list[Any]], dict[str, bytes]]:
    binary = [
        None if one is None else as_binary(one, uncertain=uncertain, blank="negative")
        for one in (labels.real, labels.generated, labels.constant)
    ]
    truth, predicted, constant = binary
    assert truth is not None
    assert predicted is not None
    metrics: list[Metric] = []
    for scope, classes in CLASS_SETS.items():
        own = columns(truth, classes)
        compared = compare_f1_scores(own, columns(predicted, classes), bootstrap)
        fixed = None if constant is None else compare_f1_scores(own, columns(constant, classes), bootstrap)
        for name, one in compared.items():
            title = f"{labels.name} {name}_{scope}"
            if not np.isfinite(one.matched.value):
                metrics.append(Metric.missing(title, "no real report affirms any of the classes"))
                continue
            value, references = numbers(one, beside={"constant": fixed[name].matched if fixed else None})
            metrics.append(Metric(title, value, extractor=labels.version, references=references, higher_is_better=True))
    rows: list[list[Any]] = []
    by_class = compare_f1_by_class(truth, predicted, bootstrap)
    for k, (name, one) in enumerate(zip(CHEXPERT_CLASSES, by_class, strict=True)):
        known = int((np.isfinite(truth[:, k]) & np.isfinite(predicted[:, k])).sum())
        counts = [labels.name, name, known, int((truth[:, k] == 1).sum()), int((predicted[:, k] == 1).sum())]
        title = f"{labels.name} f1"
        if one is None:
            metrics.append(Metric.missing(title, "no real report affirms it", of=name, extractor=labels.version))
            rows.append([*counts, None, None, None, None])
            continue
        value, references = numbers(one, n=known)
        metrics.append(
            Metric(title, value, of=name, extractor=labels.version, references=references, higher_is_better=True)
        )
        rows.append([*counts, value.value, value.low, value.high, one.shuffled.value])
    series = {
        "generated": [one and numbers(one)[0] for one in by_class],
        "shuffled": [one and numbers(one)[1]["shuffled"] for one in by_class],
    }
    positives = [int(count) for count in (truth == 1).sum(axis=0)]
    title = f"F1 of reports' findings by {labels.name} (n: real reports that affirm it)"
    return metrics, rows, {title: plots.bars(CHEXPERT_CLASSES, series, label="F1", counts=positives)}


def _agreement(labels: _Labels, uncertain: Uncertain) -> Array:
    """(n,) shares of the 14 classes in which a generated report's label is that of the real one."""
    same = [as_binary(one, uncertain=uncertain, blank="negative") for one in (labels.real, labels.generated)]
    known = np.isfinite(same[0]) & np.isfinite(same[1])
    return ((same[0] == same[1]) & known).sum(axis=1) / np.maximum(known.sum(axis=1), 1)


def _external(
    name: str,
    metric: ExternalMetric | NotComputed,
    own: EvalSet,
    real: EvalSet,
    constant: str | None,
    bootstrap: Bootstrap,
    seed: int,
) -> tuple[list[Metric], dict[str, Array]]:
    if isinstance(metric, NotComputed):
        return [Metric.missing(title, metric) for title in SCORES[name]], {}
    n = bootstrap.n
    order = derangements(n, 1, seed)[0]
    outputs = [*own.reports, *(own.reports[int(j)] for j in order), *([constant] * n if constant else [])]
    try:
        scores, version = metric.score(outputs, real.reports * (len(outputs) // n))
    except NotComputed as reason:
        return [Metric.missing(title, reason) for title in SCORES[name]], {}
    found: list[Metric] = []
    for title, values in scores.items():
        matched, shuffled = bootstrap.mean(values[:n]), bootstrap.mean(values[n : 2 * n])
        fixed = bootstrap.mean(values[2 * n :]) if constant else None
        value, references = numbers(Comparison(matched, shuffled), beside={"constant": fixed})
        found.append(
            Metric(
                title, value, extractor=version, references=references, higher_is_better=True, settings=metric.settings
            )
        )
    return found, {title: values[:n] for title, values in scores.items()}


def _within(real: EvalSet, generated: EvalSet, draws: int, seed: int) -> list[Metric]:
    """BLEU of a study's generated reports against each other, where there are several."""
    matched, several = pairs(real, generated)
    studies: dict[str, list[str]] = {}
    for item, one in zip(matched.items, several.items, strict=True):
        studies.setdefault(item.id, []).append(one.report)
    groups: list[Sequence[str]] = [reports for reports in studies.values() if len(reports) > 1]
    titles = [f"intra-study bleu_{order}" for order in range(1, text.MAX_ORDER + 1)]
    if len(groups) < 2:
        reason = f"{len(groups)} studies have several generated reports: expected at least 2"
        return [Metric.missing(title, reason) for title in titles]
    found = text.intra_study_bleu(groups, Bootstrap(len(groups), draws=draws, seed=seed))
    return [Metric(f"intra-study {name}", one.estimate(), higher_is_better=True) for name, one in found.items()]


def _worst(own: EvalSet, real: EvalSet, scores: Array) -> list[Example]:
    return [
        Example(f"{real.items[k].id}: ROUGE-L {scores[k]:.2f}. Real: {real.reports[k]} Generated: {own.reports[k]}", [])
        for k in np.argsort(scores, kind="stable")[:_WORST]
    ]
