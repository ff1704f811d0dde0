"""Do the outputs of one request agree? Cosine similarity, label sets and rank of the own image, against real pairs.

XGeM 4.3 (Eq. 5, Table 7, Fig. 5), with the controls, intervals and tests that the paper does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.data.sets import EvalSet
from xgem.eval import plots
from xgem.eval.pairing import paired_settings
from xgem.eval.record import Example, FamilyResult, Metric
from xgem.eval.route import letter
from xgem.eval.studies import samples
from xgem.judges.judge import Judge, scores_of, thresholds_of
from xgem.judges.report_labellers import ReportLabeller, RuleLabeller
from xgem.labels.vocabulary import XGEM_10
from xgem.metrics.agreement import own_rank_scores
from xgem.metrics.bootstrap import Array, Bootstrap, Comparison, average, derangements
from xgem.metrics.classification import Uncertain, as_binary, columns
from xgem.metrics.consistency import compare_cosine, compare_hamming, cosines, hamming_distances
from xgem.metrics.significance import PairedTest, wilcoxon
from xgem.pipeline.embedding import PromptEncoders
from xgem.types import DataError, NotComputed
from xgem.utils.tables import csv_text

FAMILY: Final = "consistency"
CASES: Final = "consistency_cases.csv"
REAL, GENERATED, INDEPENDENT = "real pairs", "generated", "independent"
_WORST: Final = 8

Outputs = Mapping[str, EvalSet]
"""The outputs of the same requests by modality: images of one view, or reports. Items name their study by ``pair``."""
Labels = NDArray[np.bool_]
Sources = Mapping[str, Sequence[Outputs]]
"""The outputs of each sample by source (real pairs, generated, independent); rows are the same studies in all."""


@dataclass(frozen=True)
class View:
    """Prompt encoders and judges by name for images of one view, or the reason why one is not available."""

    encoders: PromptEncoders | NotComputed
    judges: Mapping[str, Judge | NotComputed]


@dataclass(frozen=True)
class Labelling:
    """How label sets are determined: of reports by ``labeller``, of images at ``size`` (None: their own)."""

    labeller: ReportLabeller
    uncertain: Uncertain
    size: int | None


@dataclass(frozen=True)
class _Measured:
    """One metric of a pair of outputs: by source the comparison, and each study's values (n,) by sample.

    ``shuffled`` (n,): values of the first sample with the second output of other requests, if they are plotted.
    """

    name: str
    compared: Mapping[str, Comparison]
    by_sample: Mapping[str, Sequence[Array]]
    extractor: str
    weights: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    shuffled: Array | None = None

    @property
    def values(self) -> dict[str, Array]:
        """Each study's mean over samples (n,) by source."""
        return {source: np.mean(samples, axis=0) for source, samples in self.by_sample.items()}

    @property
    def test(self) -> PairedTest | None:
        """Generated against independent outputs, study by study."""
        values = self.values
        return wilcoxon(values[GENERATED], values[INDEPENDENT]) if INDEPENDENT in values else None

    def metric(self, of: str) -> Metric:
        """The metric of the generated pairs, with shuffled, independent and real pairs as references."""
        independent = self.compared.get(INDEPENDENT)
        return Metric.measured(
            self.name,
            self.compared[GENERATED],
            paired={
                INDEPENDENT: None if independent is None else independent.matched,
                REAL: self.compared[REAL].matched,
            },
            tests={INDEPENDENT: (self.test.p, "Wilcoxon")} if self.test else {},
            of=of,
            extractor=self.extractor,
            weights=self.weights,
            settings=self.settings,
        )


def evaluate(
    real: EvalSet,
    generated: EvalSet,
    *,
    encoders: PromptEncoders | NotComputed,
    judges: Mapping[str, Judge | NotComputed],
    independent: EvalSet | None = None,
    **options: Any,
) -> FamilyResult:
    """Agreement of the image and the report of each generated item, for sets whose items have both.

    Args:
        real: studies with an image and a report each, the reference ``real pairs``.
        encoders, judges: for the cosine similarity and, by name, for the label sets; or the reason why one is not
            available.
        independent: generated items of the same studies whose image and report were sampled separately.
        options: as for :func:`evaluate_outputs`.

    Raises:
        DataError: an item lacks an image or a report, or no generated item names a real study.
    """

    for items in (real, generated, *([] if independent is None else [independent])):
        lacking = next((item.id for item in items.items if item.file is None or not item.report.strip()), None)
        if lacking is not None:
            raise DataError(f"{items.name}: item {lacking} lacks an image or a report; this family needs both")

    def both(items: EvalSet) -> Outputs:
        return {"image": items, "report": items}

    separate = None if independent is None else both(independent)
    views = {"image": View(encoders, judges)}
    return evaluate_outputs(both(real), both(generated), views=views, independent=separate, **options)


def evaluate_outputs(
    real: Outputs,
    generated: Outputs,
    *,
    views: Mapping[str, View],
    independent: Outputs | None = None,
    labeller: ReportLabeller | None = None,
    uncertain: Uncertain = "positive",
    size: int | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> FamilyResult:
    """Agreement of every two outputs of a request, averaged over the samples of a study.

    Two images are compared by their cosine similarity and the rank of the own image; an image and a report by their
    cosine similarity and by the Hamming distance of their label sets.

    Args:
        real: the same modalities of real studies, row by row; the reference ``real pairs``.
        views: encoders and judges for the images of each view; any other modality is a report.
        independent: outputs of the same requests that were sampled separately; they are then a reference of every
            metric, with the paired difference and a two-sided Wilcoxon test.
        labeller: of reports; by default xgem's rules. A class that a report does not mention counts as absent.
        uncertain: what an uncertain label of a report counts as; not ``ignore``, as label sets must be complete.
        size: side at which judges read images; None keeps the images' own.

    Raises:
        DataError: an item lacks its image or report, no generated item names a study, ``independent`` lacks studies.
    """
    if uncertain == "ignore":
        raise DataError("uncertain 'ignore': a Hamming distance needs full label sets; expected positive or negative")
    sources = _sources(real, generated, independent, views)
    names = list(generated)
    n = len(sources[REAL][0][names[0]])
    bootstrap = Bootstrap(n, draws=draws, seed=seed)
    labelling = Labelling(labeller or RuleLabeller(), uncertain, size)
    embedder = _Embedder(views)
    # Every pair of outputs: metrics, values case by case, tests and plots
    metrics: list[Metric] = []
    cases: dict[str, Array] = {}
    details: dict[str, Any] = {}
    charts: dict[str, bytes] = {}
    for pair in combinations(names, 2):
        of = "" if len(names) == 2 else "-".join(map(letter, pair))
        measured, missing = _pair(pair, sources, embedder, labelling, bootstrap)
        metrics += [*(item.metric(of) for item in measured), *(replace(metric, of=of) for metric in missing)]
        for item in measured:
            title = ", ".join(filter(None, (item.name, item.extractor if item.name == "hamming" else "", of)))
            cases[title] = item.values[GENERATED]
            if item.test is not None:
                test = asdict(item.test) | {"difference": item.test.difference.as_dict()}
                details[f"{title}: generated minus independent"] = test
            if item.shuffled is not None:
                details[f"{title}: studies at distance 0, 1, ..."] = _distances(item)
            figure = " (XGeM, Fig. 5)" if item.name == "hamming" else ""
            charts[f"{title}{figure}"] = plots.histogram(_shown(item), label=item.name)
    ids = [item.id for item in sources[REAL][0][names[0]].items]
    about = paired_settings(next(iter(real.values())), next(iter(generated.values())), n=n, draws=draws, seed=seed)
    return FamilyResult(
        FAMILY,
        metrics,
        about
        | {
            "pairs": f"mean of {len(sources[GENERATED])} samples per study",
            "outputs": names,
            "independent": None if independent is None else [items.described for items in independent.values()],
            "uncertain": uncertain,
            "size": size,
            "thresholds": {
                f"{judge.name}, {view}": thresholds_of(judge).tolist()
                for view, tools in views.items()
                for judge in tools.judges.values()
                if not isinstance(judge, NotComputed)
            },
        },
        details=details,
        plots=charts,
        examples=_worst(sources[GENERATED][0], views, cases),
        tables={CASES: csv_text(["id", *cases], zip(ids, *cases.values(), strict=True))} if cases else {},
    )


def _sources(real: Outputs, generated: Outputs, independent: Outputs | None, views: Mapping[str, View]) -> Sources:
    """The outputs of all sources by sample, on the studies that have generated outputs."""
    name, first = next(iter(generated.items()))
    studies = samples(real[name], first)[0].items
    order = {item.id: row for row, item in enumerate(real[name].items)}
    rows = [order[item.id] for item in studies]
    actual = {key: real[key].subset(rows) for key in generated}
    sources: dict[str, list[Outputs]] = {REAL: [actual], GENERATED: _by_sample(actual, generated)}
    if independent is not None:
        sources[INDEPENDENT] = _by_sample(actual, {key: independent[key] for key in generated})
    for outputs in (sample for by_sample in sources.values() for sample in by_sample):
        for view in views.keys() & outputs.keys():
            lacking = next((item.id for item in outputs[view].items if item.file is None), None)
            if lacking is not None:
                raise DataError(f"{outputs[view].name}: item {lacking} lacks an image")
    return sources


def _by_sample(real: Outputs, outputs: Outputs) -> list[Outputs]:
    """The k-th outputs of every study, for as many samples as all outputs have."""
    by_output = {name: samples(real[name], items)[1] for name, items in outputs.items()}
    for name, (first, *_) in by_output.items():
        if len(first) != len(real[name]):
            raise DataError(f"{first.name}: has {len(first)} of the {len(real[name])} studies; expected all")
    return [{name: parts[k] for name, parts in by_output.items()} for k in range(min(map(len, by_output.values())))]


def _pair(
    pair: tuple[str, str],
    sources: Sources,
    embedder: _Embedder,
    labelling: Labelling,
    bootstrap: Bootstrap,
) -> tuple[list[_Measured], list[Metric]]:
    """All metrics of two outputs, and those that cannot be computed."""
    views = embedder.views
    images = [name for name in pair if name in views]
    measured: list[_Measured] = []
    missing: list[Metric] = []
    # In the space of the prompt encoders
    reason = next((found for name in images if isinstance(found := views[name].encoders, NotComputed)), None)
    if reason is not None or not images:
        missing.append(Metric.missing("cosine", reason or f"{' and '.join(pair)}: neither is an image"))
    else:
        measured += _embedded(pair, images, sources, embedder, bootstrap)
    # Label sets of an image and a report
    if len(images) == 1:
        (view,), (report,) = images, [name for name in pair if name not in views]
        for name, judge in views[view].judges.items():
            if isinstance(judge, NotComputed):
                missing.append(Metric.missing("hamming", judge, extractor=name))
            else:
                measured.append(_labels_compared(judge, view, report, sources, labelling, bootstrap))
    return measured, missing


def _embedded(
    pair: tuple[str, str], images: Sequence[str], sources: Sources, embedder: _Embedder, bootstrap: Bootstrap
) -> list[_Measured]:
    """The cosine similarity of two outputs; for two images also the rank of the own first image among all requests."""
    encoders = embedder.encoders(images[0])
    first, second = pair
    embedded = {
        source: [
            (embedder.vectors(first, outputs[first], images[0]), embedder.vectors(second, outputs[second], images[0]))
            for outputs in by_sample
        ]
        for source, by_sample in sources.items()
    }
    extractor = (encoders.name, encoders.weights)
    compared = {key: _mean([compare_cosine(*pair, bootstrap) for pair in parts]) for key, parts in embedded.items()}
    values = {key: [cosines(*pair) for pair in parts] for key, parts in embedded.items()}
    measured = [_Measured("cosine", compared, values, *extractor)]
    if len(images) == 2:
        ranks = {key: [own_rank_scores(*pair) for pair in parts] for key, parts in embedded.items()}
        compared = {key: _mean([bootstrap.matched_and_shuffled(r) for r in parts]) for key, parts in ranks.items()}
        values = {key: [np.diag(r) for r in parts] for key, parts in ranks.items()}
        measured.append(_Measured("own_image_rank", compared, values, *extractor))
    return measured


@dataclass(frozen=True)
class _Embedder:
    """Embeds outputs with the prompt encoders of the views; each set is read and embedded once."""

    views: Mapping[str, View]
    known: dict[tuple[str, str, int], Array] = field(default_factory=dict[tuple[str, str, int], Array])

    def encoders(self, view: str) -> PromptEncoders:
        encoders = self.views[view].encoders
        assert isinstance(encoders, PromptEncoders)
        return encoders

    def vectors(self, name: str, items: EvalSet, view: str) -> Array:
        """Vectors (n, d) of the output ``name``; of a report by the encoders of the ``view`` it is compared with."""
        encoders = self.encoders(name if name in self.views else view)
        key = encoders.weights, name, id(items)  # the sources keep the sets alive
        if key not in self.known:
            self.known[key] = (
                np.concatenate([encoders.images(batch) for batch in items.batches(encoders.size)])
                if name in self.views
                else encoders.reports(items.reports)
            )
        return self.known[key]


def _labels_compared(
    judge: Judge, view: str, report: str, sources: Sources, labelling: Labelling, bootstrap: Bootstrap
) -> _Measured:
    """The Hamming distance of the judge's labels of an image and the labeller's of a report."""
    classes = [name for name in judge.classes if name in XGEM_10]
    sets = {
        source: [_label_sets(judge, outputs[view], outputs[report], classes, labelling) for outputs in by_sample]
        for source, by_sample in sources.items()
    }
    first, second = sets[GENERATED][0]
    order = derangements(bootstrap.n, 1)[0]
    labeller = labelling.labeller
    return _Measured(
        "hamming",
        {key: _mean([compare_hamming(*pair, bootstrap) for pair in parts]) for key, parts in sets.items()},
        {key: [hamming_distances(*pair).astype(np.float64) for pair in parts] for key, parts in sets.items()},
        judge.name,
        judge.weights,
        {"labeller": f"{labeller.name} {labeller.version[:16]}", "findings": classes},
        hamming_distances(first[order], second).astype(np.float64),
    )


def _mean(parts: Sequence[Comparison]) -> Comparison:
    return Comparison(average([part.matched for part in parts]), average([part.shuffled for part in parts]))


def _label_sets(
    judge: Judge, images: EvalSet, reports: EvalSet, classes: Sequence[str], labelling: Labelling
) -> tuple[Labels, Labels]:
    """Label sets (n, classes) of the images and of the reports."""
    kept = [list(judge.classes).index(name) for name in classes]
    of_images = (scores_of(judge, images, labelling.size) > thresholds_of(judge))[:, kept]
    labels = as_binary(labelling.labeller.label(reports.reports), uncertain=labelling.uncertain, blank="negative")
    return of_images, columns(labels, classes) == 1


def _shown(measured: _Measured) -> dict[str, Array]:
    """Values of all samples by source, for a histogram."""
    shown = {source: np.concatenate(values) for source, values in measured.by_sample.items()}
    return shown if measured.shuffled is None else shown | {"shuffled": measured.shuffled}


def _distances(measured: _Measured) -> dict[str, list[float]]:
    """Numbers of studies by the Hamming distance of their label sets (0, 1, ...) and by source; means over samples."""
    assert measured.shuffled is not None
    shown = {**measured.by_sample, "shuffled": [measured.shuffled]}
    bins = 1 + int(max(values.max() for parts in shown.values() for values in parts))
    return {
        source: (np.bincount(np.concatenate(parts).astype(int), minlength=bins) / len(parts)).round(2).tolist()
        for source, parts in shown.items()
    }


def _worst(outputs: Outputs, views: Mapping[str, View], cases: Mapping[str, Array]) -> list[Example]:
    """The studies whose outputs agree least, by the first metric."""
    if not cases:
        return []
    title, values = next(iter(cases.items()))
    examples: list[Example] = []
    for row in np.argsort(-values if title.startswith("hamming") else values, kind="stable")[:_WORST]:
        items = {name: part.subset([int(row)]) for name, part in outputs.items()}
        images = [part.images()[0] for name, part in items.items() if name in views]
        reports = [part.reports[0] for name, part in items.items() if name not in views]
        examples.append(Example(" ".join((f"{title} {values[row]:.2f}:", *reports)), images))
    return examples
