"""Do a generated image and a generated report of one request agree? Cosines and label sets, beside real pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.data.sets import EvalSet
from xgem.eval import plots
from xgem.eval.pairing import as_table, described, numbers, one_each
from xgem.eval.record import Example, FamilyResult, Metric
from xgem.judges.judge import Judge, scores_of, thresholds_of
from xgem.judges.report_labellers import ReportLabeller, RuleLabeller
from xgem.labels.vocabulary import XGEM_10
from xgem.metrics.bootstrap import Array, Bootstrap, Comparison, derangements
from xgem.metrics.classification import Uncertain, as_binary, columns
from xgem.metrics.consistency import compare_cosine, compare_hamming, cosines, hamming_distances
from xgem.metrics.significance import wilcoxon
from xgem.pipeline.embedding import PromptEncoders
from xgem.types import DataError, NotComputed

FAMILY: Final = "consistency"
CASES: Final = "consistency_cases.csv"
_WORST: Final = 8


def evaluate(
    real: EvalSet,
    generated: EvalSet,
    *,
    encoders: PromptEncoders | NotComputed,
    judges: Mapping[str, Judge | NotComputed],
    labeller: ReportLabeller | None = None,
    independent: EvalSet | None = None,
    uncertain: Uncertain = "positive",
    size: int | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> FamilyResult:
    """Agreement of the image and the report of each generation.

    Args:
        real: studies with an image and a report each, the yardstick ``real pairs``.
        generated: items with both, of one request each.
        encoders: for the cosine; judges: for the label sets, by the name under which their numbers stand. Where one
            cannot be had, the reason in its place.
        labeller: of reports; by default xgem's rules. A class that a report does not mention counts as absent.
        independent: generations of the same studies whose image and report were made apart; each number then has its
            own beside it and a two-sided Wilcoxon test of the pairs.
        uncertain: what an uncertain label of a report counts as; not ``ignore``, for label sets must be whole.
        size: side at which the judges' images are read; None keeps their own.

    Raises:
        DataError: an item lacks an image or a report, or no generation names a real study.
    """
    if uncertain == "ignore":
        raise DataError("uncertain 'ignore': a Hamming distance needs whole label sets; expected positive or negative")
    sources: dict[str, EvalSet] = dict(zip(("real pairs", "generated"), one_each(real, generated), strict=True))
    if independent is not None:
        apart = one_each(sources["real pairs"], independent)[1]
        if len(apart) != len(sources["generated"]):
            raise DataError(
                f"{independent.name}: answers {len(apart)} of the {len(sources['generated'])} studies; expected all"
            )
        sources["independent"] = apart
    for one in sources.values():
        lacking = next((item.id for item in one.items if item.file is None or not item.report.strip()), None)
        if lacking is not None:
            raise DataError(f"{one.name}: item {lacking} lacks an image or a report; this family needs both")
    bootstrap = Bootstrap(len(sources["generated"]), draws=draws, seed=seed)
    labeller = labeller or RuleLabeller()
    metrics: list[Metric] = []
    cases: dict[str, Array] = {}
    details: dict[str, Any] = {}
    charts: dict[str, bytes] = {}

    if isinstance(encoders, NotComputed):
        metrics.append(Metric.missing("cosine", encoders))
    else:
        vectors = {
            name: (
                np.concatenate([encoders.images(batch) for batch in one.batches(encoders.size)]),
                encoders.reports(one.reports),
            )
            for name, one in sources.items()
        }
        own = {name: cosines(*pair) for name, pair in vectors.items()}
        compared = {name: compare_cosine(*pair, bootstrap) for name, pair in vectors.items()}
        common = {"extractor": encoders.name, "weights": encoders.weights, "higher_is_better": True}
        metrics.append(_metric("cosine", compared, own, bootstrap, details, common))
        cases["cosine"] = own["generated"]
        charts["Cosine of image and report"] = plots.histogram(own, label="cosine")
    for name, judge in judges.items():
        title = f"{name} hamming"
        if isinstance(judge, NotComputed):
            metrics.append(Metric.missing(title, judge))
            continue
        classes = [one for one in judge.classes if one in XGEM_10]
        sets = {key: _label_sets(judge, labeller, one, classes, uncertain, size) for key, one in sources.items()}
        own = {key: hamming_distances(*pair).astype(np.float64) for key, pair in sets.items()}
        compared = {key: compare_hamming(*pair, bootstrap) for key, pair in sets.items()}
        spaces = f"{judge.name} and {labeller.name} {labeller.version[:16]}, {len(classes)} labels"
        common = {"extractor": spaces, "weights": judge.weights, "higher_is_better": False}
        metrics.append(_metric(title, compared, own, bootstrap, details, common))
        details[f"{title}: labels"] = classes
        cases[title] = own["generated"]
        order = derangements(bootstrap.n, 1, seed)[0]
        images, reports = sets["generated"]
        shown = own | {"shuffled": hamming_distances(images[order], reports)}
        charts[f"Labels in which image and report differ, {name} (XGeM, Fig. 5)"] = plots.histogram(
            shown, label="Hamming distance", bins=len(classes) + 1
        )
        details[f"{title}: studies at distance 0, 1, ..."] = {
            key: np.bincount(one.astype(int), minlength=len(classes) + 1).tolist() for key, one in shown.items()
        }
    ids = [item.id for item in sources["real pairs"].items]
    return FamilyResult(
        FAMILY,
        metrics,
        described(
            real,
            generated,
            n=bootstrap.n,
            draws=draws,
            seed=seed,
            independent=None if independent is None else {"name": independent.name, "sha256": independent.sha256},
            uncertain=uncertain,
            size=size,
            thresholds={
                name: thresholds_of(one).tolist() for name, one in judges.items() if not isinstance(one, NotComputed)
            },
        ),
        details=details,
        plots=charts,
        examples=_worst(sources["generated"], cases),
        tables={CASES: as_table(["id", *cases], zip(ids, *cases.values(), strict=True))} if cases else {},
    )


def _metric(
    title: str,
    compared: Mapping[str, Comparison],
    own: Mapping[str, Array],
    bootstrap: Bootstrap,
    details: dict[str, Any],
    common: Mapping[str, Any],
) -> Metric:
    """The generated pairs' number; beside it shuffled and real pairs, and generations made apart where there are."""
    joint = compared["generated"].matched
    beside = {"real pairs": compared["real pairs"].matched}
    if "independent" in compared:
        beside |= {
            "independent": compared["independent"].matched,
            "less independent": joint - compared["independent"].matched,
        }
        details[f"{title}: Wilcoxon, generated against independent"] = asdict(
            wilcoxon(own["generated"], own["independent"])
        )
    value, references = numbers(compared["generated"], beside=beside)
    return Metric(title, value, references=references, **common)


def _label_sets(
    judge: Judge,
    labeller: ReportLabeller,
    items: EvalSet,
    classes: list[str],
    uncertain: Uncertain,
    size: int | None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(n, classes) of the images and of the reports."""
    kept = [list(judge.classes).index(name) for name in classes]
    of_images = (scores_of(judge, items, size) > thresholds_of(judge))[:, kept]
    labels = as_binary(labeller.label(items.reports), uncertain=uncertain, blank="negative")
    return of_images, columns(labels, classes) == 1


def _worst(generated: EvalSet, cases: Mapping[str, Array]) -> list[Example]:
    """The generations whose image and report agree least, by the first measure."""
    if not cases:
        return []
    name, values = next(iter(cases.items()))
    order = np.argsort(values if name == "cosine" else -values, kind="stable")[:_WORST]
    return [
        Example(f"{name} {values[row]:.2f}: {generated.items[row].report}", [generated.subset([int(row)]).images()[0]])
        for row in order
    ]
