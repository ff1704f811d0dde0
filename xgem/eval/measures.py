"""The measures of one route: agreement with prompts and target, fidelity, labels, sharpness, text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.eval.material import Images, Material, Training
from xgem.eval.results import Measure
from xgem.judges.classifier import Classifier, columns_of
from xgem.labels.rules import LABELLER, LABELLER_VERSION, label_matrix
from xgem.labels.vocabulary import CHEXPERT_CLASSES, NO_FINDING
from xgem.metrics import agreement as scores
from xgem.metrics import fidelity, spectrum, text
from xgem.metrics.auc import auc, compare_auc
from xgem.metrics.bootstrap import Array, Bootstrap, Sampled, average
from xgem.pipeline.embedding import Evaluated
from xgem.types import DataError

MIN_POSITIVES: Final = 10
"""A class needs this many positives and negatives among the evaluated studies for its AUC to be reported."""
FLOOR_IMAGES: Final = 1000
FINDINGS: Final = tuple(name for name in CHEXPERT_CLASSES if name != NO_FINDING)


@dataclass(frozen=True)
class RealImages:
    """What is known of one view's real images: the yardsticks of every route that makes this view."""

    view: str
    images: Images
    judge: Classifier
    logits: Array
    features: Array
    embedded: Array
    training_features: Array
    training_embedded: Array
    floor_classifier: Sampled
    floor_encoder: Sampled
    classes: tuple[str, ...]
    auc: Mapping[str, Sampled]

    @property
    def mean_auc(self) -> Sampled | None:
        return average(list(self.auc.values())) if self.auc else None


def measure_real(
    view: str,
    material: Material,
    training: Training,
    evaluated: Evaluated,
    judge: Classifier,
    bootstrap: Bootstrap,
    *,
    seed: int = 0,
) -> RealImages:
    """Features, floors and ceilings of a view's real images.

    Raises:
        DataError: fewer training than evaluated images, so that there is no floor at the same n.
    """
    images = material.images[view]
    pool = training.images[view]
    if len(pool) < len(images):
        raise DataError(
            f"{len(pool)} training {view} images for {len(images)} evaluated ones: the real-against-real floor "
            "needs at least as many; evaluate fewer with --limit"
        )
    kept = np.random.default_rng([seed, 3]).permutation(len(pool))[: max(FLOOR_IMAGES, len(images))]
    features, embedded = judge.features(images), evaluated.embed(view, images)
    training_features, training_embedded = judge.features(pool[kept]), evaluated.embed(view, pool[kept])
    logits = judge.logits(images)
    labels = material.labels[:, columns_of(judge)]
    counts = [(int((column == 1).sum()), int((column == 0).sum())) for column in labels.T]
    classes = tuple(name for name, pair in zip(judge.classes, counts, strict=True) if min(pair) >= MIN_POSITIVES)
    by_class = {name: auc(logits[:, k], labels[:, k], bootstrap) for name, k in _columns(judge, classes)}
    return RealImages(
        view=view,
        images=images,
        judge=judge,
        logits=logits,
        features=features,
        embedded=embedded,
        training_features=training_features,
        training_embedded=training_embedded,
        floor_classifier=fidelity.real_floor(training_features, features, seed=seed),
        floor_encoder=fidelity.real_floor(training_embedded, embedded, seed=seed),
        classes=classes,
        auc=by_class,
    )


def _columns(judge: Classifier, classes: Sequence[str]) -> list[tuple[str, int]]:
    return [(name, judge.classes.index(name)) for name in classes]


def prompt_embedding(embedded: Mapping[str, Array], modalities: Sequence[str]) -> Array:
    """Mean of the prompts' pooled vectors (XGeM, Eq. 2), (n, d)."""
    return np.mean([embedded[name] for name in modalities], axis=0)


def measure_images(
    generated: Images,
    real: RealImages,
    material: Material,
    prompts: Array,
    evaluated: Evaluated,
    bootstrap: Bootstrap,
    *,
    ridge: Array | None = None,
    seed: int = 0,
) -> tuple[dict[str, Measure], dict[str, Any]]:
    """All measures of one generated image (n, s, s) a study.

    Args:
        prompts: (n, d) from :func:`prompt_embedding`.
        ridge: (n, 256) coarse images predicted by ridge regression from the prompt images, as a baseline.

    Returns:
        measures by name, and details: radial power curves, AUC by class.
    """
    embedded = evaluated.embed(real.view, generated)
    features, logits = real.judge.features(generated), real.judge.logits(generated)
    target, output = scores.coarse(real.images), scores.coarse(generated)
    compare = bootstrap.matched_and_shuffled
    lines: dict[str, dict[str, Sampled]] = {"rank": {}, "pixels": {}}
    if ridge is not None:
        lines["rank"]["ridge"] = compare(scores.own_rank_scores(target, ridge)).matched
        lines["pixels"]["ridge"] = compare(_correlation(target, ridge)).matched
    space = "xgem prompt encoders"
    judged = f"classifier {real.judge.hash}"
    measures = {
        "prompt_agreement": Measure.of(compare(scores.cosine(prompts, embedded)), space=space),
        "target_agreement": Measure.of(compare(scores.cosine(real.embedded, embedded)), space=space),
        "one_minus_own_rank": Measure.of(
            compare(scores.own_rank_scores(target, output)),
            baselines=lines["rank"],
            space="standardised 16 x 16 pixels",
        ),
        "pixel_correlation": Measure.of(
            compare(_correlation(target, output)), baselines=lines["pixels"], space="standardised 16 x 16 pixels"
        ),
        "classifier_agreement": Measure.of(compare(scores.logit_scores(real.logits, logits)), space=judged),
        "frechet_classifier": Measure(
            _sized(fidelity.sampled_frechet(features, real.features, draws=_FRECHET_DRAWS, seed=seed), bootstrap),
            reference={"floor": real.floor_classifier},
            higher_is_better=False,
            space=judged,
        ),
        "frechet_encoder": Measure(
            _sized(fidelity.sampled_frechet(embedded, real.embedded, draws=_FRECHET_DRAWS, seed=seed), bootstrap),
            reference={"floor": real.floor_encoder},
            higher_is_better=False,
            space=f"{space}, {evaluated.name} {evaluated.hash}",
        ),
        "band_ratio": Measure(spectrum.band_ratio(generated, real.images, bootstrap)),
    }
    by_class: dict[str, Any] = {}
    parts: list[Measure] = []
    labels = material.labels[:, columns_of(real.judge)]
    for name, k in _columns(real.judge, real.classes):
        compared = compare_auc(logits[:, k], labels[:, k], bootstrap, seed=seed)
        parts.append(Measure.of(compared, reference={"ceiling": real.auc[name]}, space=judged))
        by_class[name] = parts[-1].as_dict() | {"positives": int((labels[:, k] == 1).sum())}
    if parts:
        ceiling = real.mean_auc
        measures["label_auc"] = Measure(
            average([part.value for part in parts]),
            average([part.shuffled for part in parts if part.shuffled is not None]),
            reference={"ceiling": ceiling} if ceiling is not None else {},
            space=judged,
        )
    details = {"label_auc_by_class": by_class, "radial_power_ratio": power_curve(generated, real.images)}
    return measures, details


_FRECHET_DRAWS = 30


def _sized(sampled: Sampled, bootstrap: Bootstrap) -> Sampled:
    """Frechet draws are their own (few, costly): repeated to the run's number so that samples can be averaged."""
    return Sampled(sampled.value, np.resize(sampled.draws, len(bootstrap.weights) - 1), bootstrap.n)


def _correlation(target: Array, output: Array) -> Array:
    return target @ output.T / target.shape[1]


def power_curve(images: Images, real: Images) -> dict[str, Any]:
    """Radial power of ``images`` over that of ``real``, ring by ring, and the least ratio in the upper band."""
    frequency, own = spectrum.radial_power(images)
    ratio = own.mean(axis=0) / np.maximum(spectrum.radial_power(real)[1].mean(axis=0), 1e-12)
    upper = ratio[frequency >= spectrum.BAND[0]]
    return {
        "frequency_nyquist": [round(float(f), 4) for f in frequency],
        "ratio": [round(float(r), 4) for r in ratio],
        "least_in_band": round(float(upper.min()), 4),
    }


def measure_reports(
    generated: Sequence[str],
    material: Material,
    modality: str,
    prompts: Array,
    target_embedded: Array,
    constant: str,
    evaluated: Evaluated,
    bootstrap: Bootstrap,
    *,
    seed: int = 0,
) -> tuple[dict[str, Measure], dict[str, Any]]:
    """All measures of one generated report a study; ``constant`` is the most frequent training impression."""
    embedded = evaluated.embed(modality, list(generated))
    compare = bootstrap.matched_and_shuffled
    space = "xgem prompt encoders"
    measures = {
        "prompt_agreement": Measure.of(compare(scores.cosine(prompts, embedded)), space=space),
        "target_agreement": Measure.of(
            compare(scores.cosine(target_embedded, embedded)),
            baselines={
                "constant": bootstrap.mean(
                    np.diag(scores.cosine(target_embedded, _same(constant, modality, evaluated, bootstrap.n)))
                )
            },
            space=space,
        ),
    }
    same = [constant] * bootstrap.n
    labeller = f"{LABELLER} {LABELLER_VERSION}, uncertain counts as positive"
    truth, predicted, fixed = (label_matrix(reports) for reports in (material.reports, generated, same))
    for scope, classes in (("14", CHEXPERT_CLASSES), ("findings", FINDINGS)):
        columns = [CHEXPERT_CLASSES.index(name) for name in classes]
        compared = text.compare_f1(truth[:, columns], predicted[:, columns], bootstrap)
        baseline = text.compare_f1(truth[:, columns], fixed[:, columns], bootstrap)
        for name, comparison in compared.items():
            measures[f"{name}_{scope}"] = Measure.of(
                comparison, baselines={"constant": baseline[name].matched}, space=labeller
            )
    fixed_bleu = text.compare_bleu(same, material.reports, bootstrap, seed=seed, permutations=1)
    for name, comparison in text.compare_bleu(generated, material.reports, bootstrap, seed=seed).items():
        measures[name] = Measure.of(
            comparison, baselines={"constant": fixed_bleu[name].matched}, space=text.bleu_signature()
        )
    details = {
        "distinct": text.distinct(generated),
        "distinct_real": text.distinct(material.reports),
        "share_of_most_frequent": _share(generated, text.most_frequent(list(generated) or [""]))
        if any(generated)
        else math.nan,
        "empty": sum(not report.strip() for report in generated),
        "by_class": text.class_f1(truth, predicted, CHEXPERT_CLASSES),
        "constant": constant,
    }
    return measures, details


def _same(constant: str, modality: str, evaluated: Evaluated, n: int) -> Array:
    return np.repeat(evaluated.embed(modality, [constant]), n, axis=0)


def _share(reports: Sequence[str], one: str) -> float:
    return sum(report == one for report in reports) / len(reports)


def ridge_baseline(inputs: Sequence[str], output: str, material: Material, training: Material) -> Array | None:
    """Ridge regression from the prompt images to the target's coarse pixels; None where no prompt is an image."""
    views = [name for name in inputs if name in material.images]
    if not views:
        return None

    def stacked(source: Material) -> NDArray[np.float64]:
        return np.concatenate([scores.coarse(source.images[view]) for view in views], axis=1)

    return scores.ridge_prediction(stacked(material), stacked(training), scores.coarse(training.images[output]))
