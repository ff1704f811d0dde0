"""Do outputs agree with the prompts that they were generated from, and with the study's real image or report?

Cosine similarities use a model's own prompt encoders (XGeM, Eq. 2 and 5), which are not an independent judge of that
model; pixels and the judge's scores are. These numbers are compared with that of other studies' outputs (``shuffled``).
Where a study has several samples, two more say whether outputs depend on the input more than on the seed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.data.sets import EvalSet
from xgem.eval import input_over_seed
from xgem.eval.pairing import paired_settings
from xgem.eval.record import FamilyResult, Metric
from xgem.eval.studies import Studies, pixels_of, samples
from xgem.judges.judge import Judge, scores_of, thresholds_of
from xgem.judges.report_labellers import RuleLabeller
from xgem.metrics import agreement
from xgem.metrics.bootstrap import Array, Bootstrap, Comparison, Sampled, average
from xgem.metrics.classification import as_binary
from xgem.metrics.text import most_frequent
from xgem.pipeline.embedding import Evaluated

FAMILY: Final = "agreement"
GRID: Final = f"standardised {agreement.GRID} x {agreement.GRID} pixels"


def evaluate(
    real: Studies,
    generated: EvalSet,
    *,
    inputs: Sequence[str],
    output: str,
    encoders: Evaluated,
    judge: Judge | None = None,
    training: Studies | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> FamilyResult:
    """Agreement of generated images or reports with their prompts and targets; means over the samples of a study.

    With several samples, also the share of the outputs' variance that lies between studies and not between seeds, and
    how much the findings of two samples of a study have in common: by the judge for images, by rules for reports.

    Args:
        real: the real studies of the generated items, with all of ``inputs`` and ``output``.
        inputs: modalities of the prompts.
        output: the generated modality.
        encoders: prompt encoders, codec and preprocessing of a model.
        judge: a classifier whose scores of generated and real images are correlated, class by class, and whose findings
            of several samples are compared.
        training: real training studies, for baselines: for images, ridge regression from the prompt images to the
            target; for reports, the most frequent report.

    Raises:
        DataError: no generated item names a real study.
    """
    target, outputs = samples(real[output], generated)
    real = real.of([item.id for item in target.items])
    bootstrap = Bootstrap(len(real), draws=draws, seed=seed)
    if output in encoders.images:
        metrics = _of_images(real, inputs, output, outputs, encoders, judge, training, bootstrap)
    else:
        metrics = _of_reports(real, inputs, output, outputs, encoders, training, bootstrap)
    about = paired_settings(real[output], generated, n=bootstrap.n, draws=draws, seed=seed)
    about |= {
        "pairs": f"mean of {len(outputs)} samples per study",
        "inputs": list(inputs),
        "output": output,
        "encoders": {"name": encoders.name, "hash": encoders.hash},
    }
    return FamilyResult(FAMILY, metrics, about)


def prompt_vectors(real: Studies, inputs: Sequence[str], encoders: Evaluated) -> Array:
    """Mean of the pooled vectors of a study's prompts (XGeM, Eq. 2), (n, d)."""
    return np.mean([_embedded(real[name], name, encoders) for name in inputs], axis=0)


def _embedded(items: EvalSet, modality: str, encoders: Evaluated) -> Array:
    """Pooled vectors (n, d) of images or reports."""
    is_image = modality in encoders.images
    return encoders.embed(modality, pixels_of(items, encoders) if is_image else items.reports)


def _mean(scores: Iterable[Array], bootstrap: Bootstrap) -> Comparison:
    """The mean over samples of (n, n) scores: (i, j) rates the output for study j against study i."""
    parts = [bootstrap.matched_and_shuffled(sample) for sample in scores]
    return Comparison(average([part.matched for part in parts]), average([part.shuffled for part in parts]))


def _of_images(
    real: Studies,
    inputs: Sequence[str],
    output: str,
    outputs: Sequence[EvalSet],
    encoders: Evaluated,
    judge: Judge | None,
    training: Studies | None,
    bootstrap: Bootstrap,
) -> list[Metric]:
    # Cosine similarities in the prompt encoders' space
    images = [pixels_of(sample, encoders) for sample in outputs]
    vectors = [encoders.embed(output, sample) for sample in images]
    metrics = _cosines(real, inputs, output, vectors, encoders, bootstrap)
    # Pixels: the rank of the own image among those of all studies, and the correlation with it
    target = agreement.coarse(pixels_of(real[output], encoders))
    coarse = [agreement.coarse(sample) for sample in images]
    predicted = _ridge(real, training, inputs, output, encoders)
    for name, score in (("one_minus_own_rank", agreement.own_rank_scores), ("pixel_correlation", _correlation)):
        ridge = None if predicted is None else _mean([score(target, predicted)], bootstrap).matched
        value = _mean((score(target, sample) for sample in coarse), bootstrap)
        metrics.append(Metric.measured(name, value, paired={"ridge": ridge}, extractor=GRID))
    # The judge's logits
    if judge is not None:
        by: dict[str, Any] = {"extractor": judge.name, "weights": judge.weights}
        actual, scores = scores_of(judge, real[output]), [scores_of(judge, sample) for sample in outputs]
        logits = [_logits(sample) for sample in scores]
        value = _mean((agreement.logit_scores(_logits(actual), sample) for sample in logits), bootstrap)
        metrics.append(Metric.measured("classifier_agreement", value, **by))
        metrics.append(input_over_seed.of_vectors(logits, bootstrap, **by))
        seen, of_real = [sample > thresholds_of(judge) for sample in scores], actual > thresholds_of(judge)
        metrics.append(input_over_seed.of_labels(seen, of_real, bootstrap, **by))
    return metrics


def _of_reports(
    real: Studies,
    inputs: Sequence[str],
    output: str,
    outputs: Sequence[EvalSet],
    encoders: Evaluated,
    training: Studies | None,
    bootstrap: Bootstrap,
) -> list[Metric]:
    constant: Sampled | None = None
    if training is not None:
        fixed = encoders.embed(output, [most_frequent(training[output].reports)])
        constant = bootstrap.mean(agreement.cosine(_embedded(real[output], output, encoders), fixed)[:, 0])
    vectors = [encoders.embed(output, sample.reports) for sample in outputs]
    stated = [_findings(sample.reports) for sample in outputs]
    by = {"extractor": RuleLabeller().name, "weights": RuleLabeller().version}
    labels = input_over_seed.of_labels(stated, _findings(real[output].reports), bootstrap, **by)
    return [*_cosines(real, inputs, output, vectors, encoders, bootstrap, constant), labels]


def _findings(reports: Sequence[str]) -> NDArray[np.bool_]:
    """Label sets (n, 14) by xgem's rules, "No Finding" among them; uncertain ones count as present."""
    return as_binary(RuleLabeller().label(reports), uncertain="positive", blank="negative") == 1


def _cosines(
    real: Studies,
    inputs: Sequence[str],
    output: str,
    vectors: Sequence[Array],
    encoders: Evaluated,
    bootstrap: Bootstrap,
    constant: Sampled | None = None,
) -> list[Metric]:
    """Cosines with the prompts (ceiling: the real target's) and with the real target; input over seed."""
    prompts, target = prompt_vectors(real, inputs, encoders), _embedded(real[output], output, encoders)
    ceiling = _mean([agreement.cosine(prompts, target)], bootstrap).matched
    by: dict[str, Any] = {"extractor": f"prompt encoders of {encoders.name}", "weights": encoders.hash}
    metrics = [
        Metric.measured(
            name, _mean((agreement.cosine(other, sample) for sample in vectors), bootstrap), paired=paired, **by
        )
        for name, other, paired in (
            ("prompt_agreement", prompts, {"ceiling": ceiling}),
            ("target_agreement", target, {"constant": constant}),
        )
    ]
    directions = [agreement.directions(sample) for sample in vectors]
    return [*metrics, input_over_seed.of_vectors(directions, bootstrap, **by)]


def _correlation(target: Array, output: Array) -> Array:
    """Pearson's r (n, n) of standardised rows."""
    return target @ output.T / target.shape[1]


def _logits(scores: Array) -> Array:
    probabilities = np.clip(scores, 1e-9, 1 - 1e-9)
    return np.log(probabilities / (1 - probabilities))


def _ridge(
    real: Studies, training: Studies | None, inputs: Sequence[str], output: str, encoders: Evaluated
) -> Array | None:
    """Coarse targets (n, 256) predicted from the prompt images by ridge regression; None without a prompt image."""
    views = [name for name in inputs if name in encoders.images]
    if training is None or not views:
        return None

    def stacked(studies: Studies) -> Array:
        return np.concatenate([agreement.coarse(pixels_of(studies[view], encoders)) for view in views], axis=1)

    target = agreement.coarse(pixels_of(training[output], encoders))
    return agreement.ridge_prediction(stacked(real), stacked(training), target)
