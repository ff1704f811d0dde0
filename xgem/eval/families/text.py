"""Generated reports against their studies' real reports: word overlap, agreement of labels, entities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np

from xgem.data.sets import EvalSet, pairs
from xgem.eval import plots
from xgem.eval.pairing import one_each, paired_settings
from xgem.eval.record import Example, FamilyResult, Metric
from xgem.eval.retrieval import Retrieval
from xgem.judges.external_text import SCORES, ExternalMetric
from xgem.judges.report_labellers import LabelTable, ReportLabeller, RuleLabeller
from xgem.labels.vocabulary import CHEXPERT_CLASSES, CLASS_SETS
from xgem.metrics import text
from xgem.metrics.bootstrap import Array, Bootstrap, Comparison, Estimate, Sampled, derangements
from xgem.metrics.classification import Uncertain, as_binary, columns, compare_f1_by_class, compare_f1_scores
from xgem.metrics.language import compare_perplexity, language_signature, trigram_model
from xgem.types import DataError, InputError, NotComputed
from xgem.utils.tables import csv_text

FAMILY: Final = "text"
CASES: Final = "text_cases.csv"
LABELS: Final = "text_labels.csv"
_WORST: Final = 8


Baselines = Mapping[str, Sequence[str]]
"""Reports of each study by the name of the baseline that gives them."""


@dataclass(frozen=True)
class Tables:
    """Precomputed labels by id, of the generated and of the real reports."""

    generated: LabelTable
    real: LabelTable


@dataclass(frozen=True)
class _Labels:
    """Labels by one labeller, (n, 14) of 1, 0, -1, NaN; those of the baselines if it can label new text."""

    name: str
    version: str
    real: Array
    generated: Array
    baselines: Mapping[str, Array]


def evaluate(
    real: EvalSet,
    generated: EvalSet,
    *,
    training: EvalSet | None = None,
    retrieval: Retrieval | NotComputed | None = None,
    labellers: Mapping[str, ReportLabeller | Tables | NotComputed] | None = None,
    external: Mapping[str, ExternalMetric | NotComputed] | None = None,
    uncertain: Uncertain = "positive",
    draws: int = 1000,
    seed: int = 0,
    permutations: int = 10,
) -> FamilyResult:
    """Overlap of words, perplexity, label F1 by every labeller, RadGraph-F1 and RaTEScore, and BLEU within a study.

    Args:
        training: real training reports: the most frequent and the most typical one are the baselines ``constant`` and
            ``template``, their words are known, and perplexity is under a trigram model of them.
        retrieval: for each real study the report of the nearest training image, a baseline of the same name; or the
            reason why there is none.
        labellers: by the name under which their F1 is reported, or the reason why one is not available; by default
            xgem's own rules.
        external: ``radgraph`` and ``ratescore``; their shuffled control is a single derangement, as each needs a run.
        uncertain: what -1 counts as; a class that a report does not mention counts as absent.

    A real study without a report is left out and counted. An empty generated report has zero overlap and no findings;
    the share of empty reports is a metric.

    Raises:
        DataError: no real or no generated item has a report, or no generated item names a real study.
        InputError: an unknown external metric.
    """
    _check(generated, external or {})
    reported = real.with_reports()
    truth, outputs = one_each(reported, generated)
    bootstrap = Bootstrap(len(outputs), draws=draws, seed=seed)
    baselines = _baselines(truth, training, retrieval)

    # Words
    metrics = _overlap(outputs, truth, baselines, bootstrap, {"seed": seed, "permutations": permutations})
    metrics += _as_written(outputs, truth, training, bootstrap)
    cases: dict[str, Array] = {"rouge_l": text.rouge_l(outputs.reports, truth.reports)}

    # Agreement of labels, by each labeller
    chosen = labellers or {RuleLabeller().name: RuleLabeller()}
    labelled = _by_labellers(chosen, outputs, truth, baselines, uncertain, bootstrap)
    metrics += labelled.metrics
    cases |= labelled.cases

    # Entities, by packages in their own Python environments
    for name in SCORES:
        metric = (external or {}).get(name, NotComputed(_NO_PYTHON.format(name)))
        of_entities, values = _external(name, metric, outputs, truth, baselines, bootstrap, seed)
        metrics += of_entities
        cases |= values
    metrics += _within_study(reported, generated, draws, seed)

    settings = {
        "permutations": permutations,
        "uncertain": uncertain,
        "bleu": text.bleu_signature(),
        "rouge_l": text.rouge_signature(),
        "meteor": text.meteor_signature(),
        "perplexity": language_signature(),
        "training": None if training is None else {"name": training.name, "n": len(training)},
        "retrieval": dict(retrieval.settings) if isinstance(retrieval, Retrieval) else retrieval and str(retrieval),
    }
    return FamilyResult(
        FAMILY,
        metrics,
        paired_settings(reported, generated, n=bootstrap.n, draws=draws, seed=seed, **settings),
        details=_details(outputs, truth, baselines, left_out=len(real) - len(reported)),
        plots=labelled.charts,
        examples=_worst(outputs, truth, cases["rouge_l"]),
        tables={
            LABELS: csv_text(_LABEL_HEADS, labelled.rows),
            CASES: csv_text(["id", *cases], zip([item.id for item in truth.items], *cases.values(), strict=True)),
        },
    )


def _details(generated: EvalSet, real: EvalSet, baselines: Baselines, *, left_out: int) -> dict[str, Any]:
    """Counts of reports left out, of empty and of distinct ones, and the fixed reports."""
    return {
        "real studies left out, without a report": left_out,
        "empty generated reports": sum(not report.strip() for report in generated.reports),
        "distinct generated reports": text.distinct(generated.reports),
        "distinct real reports": text.distinct(real.reports),
        "constant report": next(iter(baselines.get("constant", ())), None),
        "template report": next(iter(baselines.get("template", ())), None),
    }


def _baselines(real: EvalSet, training: EvalSet | None, retrieval: object) -> Baselines:
    """The most frequent and the most typical training report, and the retrieved ones, as far as given."""
    baselines: dict[str, Sequence[str]] = {}
    if training is not None:
        baselines["constant"] = [text.most_frequent(training.reports)] * len(real)
        baselines["template"] = [text.most_typical(training.reports)] * len(real)
    if isinstance(retrieval, Retrieval):
        baselines["retrieval"] = retrieval.of(real)
    return baselines


def _check(generated: EvalSet, external: Mapping[str, object]) -> None:
    """Raises InputError for an unknown external metric, DataError if there is no generated report."""
    unknown = next((name for name in external if name not in SCORES), None)
    if unknown is not None:
        raise InputError(f"external metric {unknown!r}: expected {' or '.join(SCORES)}")
    if not any(report.strip() for report in generated.reports):
        raise DataError(f"{generated.name}: no reports; these metrics need a column report")


_LABEL_HEADS: Final = ("labeller", "class", "n", "real", "generated", "f1", "low", "high", "shuffled")
_NO_PYTHON: Final = "no Python interpreter with the package was given (--{}-python)"


def _overlap(
    generated: EvalSet, real: EvalSet, baselines: Baselines, bootstrap: Bootstrap, options: Mapping[str, int]
) -> list[Metric]:
    """BLEU, ROUGE-L and METEOR, with the shuffled control and the baselines."""
    compared = text.compare_bleu(generated.reports, real.reports, bootstrap, **options)
    means = {"rouge_l": text.rouge_l, "meteor": text.meteor}
    for name, score in means.items():
        compared[name] = text.compare_mean(score, generated.reports, real.reports, bootstrap, **options)
    scores: dict[str, dict[str, Sampled]] = {name: {} for name in compared}
    for baseline, reports in baselines.items():
        statistics = bootstrap.weights @ text.bleu_statistics(reports, real.reports)  # (1 + draws, 10)
        for order in range(1, text.MAX_ORDER + 1):
            scores[f"bleu_{order}"][baseline] = bootstrap.sampled(text.bleu_from_statistics(statistics, order))
        for name, score in means.items():
            scores[name][baseline] = bootstrap.mean(score(reports, real.reports))
    return [Metric.measured(name, comparison, paired=scores[name]) for name, comparison in compared.items()]


def _as_written(generated: EvalSet, real: EvalSet, training: EvalSet | None, bootstrap: Bootstrap) -> list[Metric]:
    """Empty reports; against training reports, those with a word that none of them has, and perplexity."""
    blank = np.array([not report.strip() for report in generated.reports], dtype=np.float64)
    empty = Metric.measured("empty_reports", bootstrap.mean(blank))
    if training is None:
        reason = "no training reports were given (--training)"
        return [empty, *(Metric.missing(name, reason) for name in ("non_words", "perplexity", "perplexity_ratio"))]
    unknown, unknown_real = text.compare_unknown(
        generated.reports, real.reports, text.vocabulary(training.reports), bootstrap
    )
    model = trigram_model(tuple(training.reports))
    surprise, surprise_real, ratio = compare_perplexity(generated.reports, real.reports, model, bootstrap)
    return [
        empty,
        Metric.measured("non_words", unknown, paired={"real": unknown_real}),
        Metric.measured("perplexity", surprise, paired={"real": surprise_real}),
        Metric.measured("perplexity_ratio", ratio),
    ]


@dataclass(frozen=True)
class _Labelled:
    """Results of the agreement of labels: metrics, rows of the table of classes, values per case, charts."""

    metrics: list[Metric] = field(default_factory=list[Metric])
    rows: list[list[Any]] = field(default_factory=list[list[Any]])
    cases: dict[str, Array] = field(default_factory=dict[str, Array])
    charts: dict[str, bytes] = field(default_factory=dict[str, bytes])


def _by_labellers(
    labellers: Mapping[str, ReportLabeller | Tables | NotComputed],
    generated: EvalSet,
    real: EvalSet,
    baselines: Baselines,
    uncertain: Uncertain,
    bootstrap: Bootstrap,
) -> _Labelled:
    result = _Labelled()
    for name, labeller in labellers.items():
        if isinstance(labeller, NotComputed):
            result.metrics.extend(Metric.missing(f"micro_f1_{scope}", labeller, extractor=name) for scope in CLASS_SETS)
            continue
        labels = _labels(name, labeller, generated, real, baselines)
        metrics, rows, chart = _label_f1(labels, uncertain, bootstrap)
        result.metrics.extend(metrics)
        result.rows.extend(rows)
        result.charts.update(chart)
        result.cases[f"{name} label agreement"] = _agreement(labels, uncertain)
    return result


def _labels(
    name: str, labeller: ReportLabeller | Tables, generated: EvalSet, real: EvalSet, baselines: Baselines
) -> _Labels:
    if isinstance(labeller, Tables):
        versions = f"{labeller.generated.name}, {labeller.real.name}"
        of_generated = labeller.generated.of([item.id for item in generated.items])
        return _Labels(name, versions, labeller.real.of([item.id for item in real.items]), of_generated, {})
    fixed = {baseline: _label_each(labeller, reports) for baseline, reports in baselines.items()}
    version = f"{labeller.name} {labeller.version[:16]}"
    return _Labels(name, version, labeller.label(real.reports), labeller.label(generated.reports), fixed)


def _label_each(labeller: ReportLabeller, reports: Sequence[str]) -> Array:
    """Labels (n, 14), each distinct report labelled once."""
    distinct = list(dict.fromkeys(reports))
    rows = {report: row for row, report in enumerate(distinct)}
    return labeller.label(distinct)[[rows[report] for report in reports]]


def _label_f1(
    labels: _Labels, uncertain: Uncertain, bootstrap: Bootstrap
) -> tuple[list[Metric], list[list[Any]], dict[str, bytes]]:
    """F1 over sets of classes and by class: metrics, rows of the table of classes, and a chart."""
    # (n, 14) each
    truth, predicted = (
        as_binary(values, uncertain=uncertain, blank="negative") for values in (labels.real, labels.generated)
    )
    baselines = {
        name: as_binary(values, uncertain=uncertain, blank="negative") for name, values in labels.baselines.items()
    }
    common: dict[str, Any] = {"extractor": labels.name, "weights": labels.version}
    # Averages over the sets of classes
    metrics: list[Metric] = []
    for scope, classes in CLASS_SETS.items():
        kept = columns(truth, classes)
        compared = compare_f1_scores(kept, columns(predicted, classes), bootstrap)
        scores = {
            baseline: compare_f1_scores(kept, columns(values, classes), bootstrap)
            for baseline, values in baselines.items()
        }
        for name, comparison in compared.items():
            if not np.isfinite(comparison.matched.value):
                reason = "no real report has a positive label for any of the classes"
                metrics.append(Metric.missing(f"{name}_{scope}", reason, **common))
                continue
            paired = {baseline: score[name].matched for baseline, score in scores.items()}
            metrics.append(Metric.measured(f"{name}_{scope}", comparison, paired=paired, **common))
    # Class by class
    rows: list[list[Any]] = []
    series: dict[str, list[Estimate | None]] = {"generated": [], "shuffled": []}
    by_class = {baseline: compare_f1_by_class(truth, values, bootstrap) for baseline, values in baselines.items()}
    for k, (name, comparison) in enumerate(
        zip(CHEXPERT_CLASSES, compare_f1_by_class(truth, predicted, bootstrap), strict=True)
    ):
        known = int((np.isfinite(truth[:, k]) & np.isfinite(predicted[:, k])).sum())
        counts = [labels.name, name, known, int((truth[:, k] == 1).sum()), int((predicted[:, k] == 1).sum())]
        if comparison is None:
            metric = Metric.missing("f1", "no real report has a positive label for it", of=name, **common)
        else:
            paired = {baseline: found.matched for baseline, values in by_class.items() if (found := values[k])}
            metric = Metric.measured("f1", comparison, paired=paired, n=known, of=name, **common)
        metrics.append(metric)
        shuffled = metric.references["shuffled"].value if metric.value else None
        numbers = [metric.value.value, *metric.value.interval] if metric.value else [None, None, None]
        rows.append([*counts, *numbers, shuffled and shuffled.value])
        series["generated"].append(metric.value)
        series["shuffled"].append(shuffled)
    positives = [int(count) for count in (truth == 1).sum(axis=0)]
    title = f"F1 of reports' findings by {labels.name} (n: positive real reports)"
    return metrics, rows, {title: plots.bars(CHEXPERT_CLASSES, series, label="F1", counts=positives)}


def _agreement(labels: _Labels, uncertain: Uncertain) -> Array:
    """(n,) fractions of the 14 classes in which a generated report's label equals that of the real one."""
    real, generated = (
        as_binary(values, uncertain=uncertain, blank="negative") for values in (labels.real, labels.generated)
    )
    known = np.isfinite(real) & np.isfinite(generated)
    return ((real == generated) & known).sum(axis=1) / np.maximum(known.sum(axis=1), 1)


def _external(
    name: str,
    metric: ExternalMetric | NotComputed,
    generated: EvalSet,
    real: EvalSet,
    baselines: Baselines,
    bootstrap: Bootstrap,
    seed: int,
) -> tuple[list[Metric], dict[str, Array]]:
    """The metrics of a package, with one derangement and the baselines, and their values per case."""
    if isinstance(metric, NotComputed):
        return [Metric.missing(title, metric, extractor=name) for title in SCORES[name]], {}
    # One run for the outputs, the shuffled outputs and the baselines
    n = bootstrap.n
    order = derangements(n, 1, seed)[0]
    outputs = [*generated.reports, *(generated.reports[int(j)] for j in order)]
    outputs += [report for reports in baselines.values() for report in reports]
    try:
        scores, version = metric.score(outputs, real.reports * (len(outputs) // n))
    except NotComputed as reason:
        return [Metric.missing(title, reason, extractor=name) for title in SCORES[name]], {}
    metrics: list[Metric] = []
    for title, values in scores.items():
        comparison = Comparison(bootstrap.mean(values[:n]), bootstrap.mean(values[n : 2 * n]))
        paired = {
            baseline: bootstrap.mean(values[k * n : (k + 1) * n]) for k, baseline in enumerate(baselines, start=2)
        }
        options: dict[str, Any] = {"extractor": name, "weights": version, "settings": metric.settings}
        metrics.append(Metric.measured(title, comparison, paired=paired, **options))
    return metrics, {title: values[:n] for title, values in scores.items()}


def _within_study(real: EvalSet, generated: EvalSet, draws: int, seed: int) -> list[Metric]:
    """BLEU between a study's generated reports, if there are several."""
    matched, outputs = pairs(real, generated)
    studies: dict[str, list[str]] = {}
    for item, output in zip(matched.items, outputs.items, strict=True):
        studies.setdefault(item.id, []).append(output.report)
    groups: list[Sequence[str]] = [reports for reports in studies.values() if len(reports) > 1]
    titles = [f"intra_study_bleu_{order}" for order in range(1, text.MAX_ORDER + 1)]
    if len(groups) < 2:
        reason = f"{len(groups)} studies have several generated reports: expected at least 2"
        return [Metric.missing(title, reason) for title in titles]
    scores = text.intra_study_bleu(groups, Bootstrap(len(groups), draws=draws, seed=seed))
    return [Metric.measured(f"intra_study_{name}", sampled) for name, sampled in scores.items()]


def _worst(generated: EvalSet, real: EvalSet, scores: Array) -> list[Example]:
    """The generated reports with the least overlap with the real ones."""
    texts = zip(real.items, real.reports, generated.reports, scores, strict=True)
    captions = [
        f"{item.id}: ROUGE-L {score:.2f}. Real: {report} Generated: {output}" for item, report, output, score in texts
    ]
    return [Example(captions[k], []) for k in np.argsort(scores, kind="stable")[:_WORST]]
