"""Do generated frontal radiographs show what was requested? Masks, boxes, severity and demographics, each given alone.

Networks trained on real training images judge what an image shows. Two references are of the same studies: the
``shuffled`` control (requests of other studies) and the ``ceiling`` (the study's own real image). ChexGen shows its
annotated outputs and trains on them; whether they follow their annotations is measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.data.outlines import Outlines, united
from xgem.data.sets import squares
from xgem.data.study import Study, read_study
from xgem.eval.families.requests import MIN_STUDIES, MIN_TRAINING, Annotated, Judges, Requested
from xgem.eval.record import Example, FamilyResult, Metric
from xgem.judges.classifier import Classifier, train_classifier
from xgem.judges.segmenter import train_segmenter
from xgem.labels.vocabulary import classes_of
from xgem.metrics import spatial
from xgem.metrics.auc import auc, compare_auc
from xgem.metrics.bootstrap import Array, Comparison, Sampled, average
from xgem.metrics.correlation import compare_correlation, correlation
from xgem.types import NotComputed

FAMILY: Final = "control"
FEMALE: Final = "F"
AGES: Final = (20, 30, 40, 50, 60, 70)
"""The judge of age gives the probability that the patient is older than each of these; their mean is its estimate."""
EXAMPLES: Final = 12
Images = NDArray[np.uint8]


def evaluate(kind: str, requested: Requested, judges: Judges) -> FamilyResult:
    """How well images follow one kind of input: ``mask``, ``boxes``, ``severity`` or ``demographics``.

    Metrics are means over samples. ``share_of_ceiling`` is 0 for a model that ignores the input, 1 for real images.

    Raises:
        NotComputed: too few studies, or nothing that judges can learn from.
    """
    outcome = KINDS[kind](requested, judges)
    settings = {
        "seed": judges.seed,
        "bootstrap": f"{judges.draws} resamplings of studies",
        "n": len(requested.real),
        "training_images": len(requested.training),
        "pairs": f"mean of {len(requested.samples)} samples per study",
        **outcome.settings,
    }
    missing = [Metric.missing(name, why, of=of) for (name, of), why in outcome.left_out.items()]
    return FamilyResult(
        FAMILY, [*outcome.metrics, *missing], settings, details=outcome.details, examples=_examples(outcome.columns)
    )


@dataclass(frozen=True)
class _Found:
    """Metrics of one kind; ``columns`` of images or texts for examples; reasons in ``left_out`` by metric and part."""

    metrics: list[Metric]
    settings: Mapping[str, Any]
    columns: Sequence[tuple[str, Any]]
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])
    left_out: Mapping[tuple[str, str], str] = field(default_factory=dict[tuple[str, str], str])


def _examples(columns: Sequence[tuple[str, Any]]) -> list[Example]:
    """One example per study: its images in the order of the columns, its texts in the caption."""
    images = [values for _, values in columns if isinstance(values, np.ndarray)]
    texts = [values for _, values in columns if not isinstance(values, np.ndarray)]
    titles = ", ".join(name for name, values in columns if isinstance(values, np.ndarray))
    return [
        Example("; ".join((*(column[row] for column in texts), titles)), [column[row] for column in images])
        for row in range(min(EXAMPLES, len(images[0])))
    ]


def _mean(parts: Sequence[Comparison]) -> Comparison:
    return Comparison(average([part.matched for part in parts]), average([part.shuffled for part in parts]))


def masks(requested: Requested, judges: Judges) -> _Found:
    """Dice and IoU of the requested mask with the same structure as segmented in the image."""
    # Structures that are outlined in enough studies
    requested.check("masks")
    wanted, training_masks = (
        [united(read_study(study, judges.transform).masks) for study in part.studies]
        for part in (requested.real, requested.training)
    )
    counts = {
        name: (sum(name in study for study in wanted), sum(name in study for study in training_masks))
        for name in sorted({name for study in (*wanted, *training_masks) for name in study})
    }
    structures = [name for name, (n, m) in counts.items() if n >= MIN_STUDIES and m >= MIN_TRAINING]
    left_out = {
        ("dice", name): f"outlined in {n} evaluated and {m} training studies: expected at least {MIN_STUDIES} and "
        f"{MIN_TRAINING}"
        for name, (n, m) in counts.items()
        if name not in structures
    }
    if not structures:
        raise NotComputed(f"no structure is outlined often enough: {counts} (evaluated, training)")
    # Segmentations of the real and the generated images
    size = judges.transform.size
    segmenter = train_segmenter(
        requested.training.images,
        Outlines.stacked(training_masks, structures, size),
        config=judges.segmenter,
        cache=judges.cache,
        device=judges.device,
    )
    truth = Outlines.stacked(wanted, structures, size)
    in_real = segmenter.masks(requested.real.images)  # (n, structures, s, s)
    in_samples = [segmenter.masks(images) for images in requested.samples]
    # Overlap with the requested masks, structure by structure
    metrics: list[Metric] = []
    for k, structure in enumerate(structures):
        rows = truth.known[:, k]
        compare = judges.bootstrap(int(rows.sum())).matched_and_shuffled
        overlaps = [spatial.overlaps(found[rows, k], truth.masks[rows, k]) for found in (in_real, *in_samples)]
        for place, name in enumerate(("dice", "iou")):
            ceiling, *samples = (compare(scores[place]) for scores in overlaps)
            metrics.append(
                Metric.measured(
                    name,
                    _mean(samples),
                    paired={"ceiling": ceiling.matched},
                    of=structure,
                    extractor="segmenter",
                    weights=segmenter.hash,
                )
            )
    columns = [("requested", _drawn(truth.masks)), ("real", requested.real.images), ("found in real", _drawn(in_real))]
    for k, (images, segmented) in enumerate(zip(requested.samples, in_samples, strict=True), 1):
        columns += [(f"generated {k}", images), (f"found {k}", _drawn(segmented))]
    return _Found(metrics, {"segmenter": segmenter.hash}, columns, left_out=left_out)


def _drawn(masks: spatial.Mask) -> Images:
    """(n, k, s, s) masks -> (n, s, s) images with a grey level for each structure."""
    greys = np.linspace(255, 80, masks.shape[1]).astype(np.uint8)
    return (masks * greys[:, None, None]).max(axis=1).astype(np.uint8)


def boxes(requested: Requested, judges: Judges) -> _Found:
    """Contrast of the requested box, and the classifier's response to its class there."""
    # The requested boxes, and those of classes that the classifier has
    real = requested.real
    if len(real) < MIN_STUDIES:
        raise NotComputed(f"{len(real)} evaluated studies with boxes: expected at least {MIN_STUDIES}")
    wanted = [read_study(study, judges.transform).boxes for study in real.studies]
    findings = judges.findings
    left_out: dict[tuple[str, str], str] = {}
    known: list[list[tuple[spatial.Box, int]]] = [[] for _ in wanted]
    if isinstance(findings, NotComputed):
        reason: str | None = str(findings)
    else:
        classes = {name: k for k, name in enumerate(findings.classes)}
        known = [
            [(box, classes[name]) for box in study_boxes if (name := box_class(box.label)) in classes]
            for study_boxes in wanted
        ]
        rows = sum(map(bool, known))
        reason = f"{rows} studies have boxes of a class that the classifier knows: expected at least {MIN_STUDIES}"
        reason = reason if rows < MIN_STUDIES else None
    if reason is not None:
        left_out |= {("logit", ""): reason, ("response", ""): reason}
    # Scores of real and generated images, metric by metric on the studies that have it
    in_real, *in_samples = (
        _box_scores(images, wanted, None if reason else known, judges) for images in (real.images, *requested.samples)
    )
    metrics: list[Metric] = []
    for name, (scores, judge) in in_real.items():
        kept = np.flatnonzero(np.isfinite(np.diag(scores)))
        if len(kept) < MIN_STUDIES:
            left_out[name, ""] = f"{len(kept)} studies with a value: expected at least {MIN_STUDIES}"
            continue
        compare, place = judges.bootstrap(len(kept)).matched_and_shuffled, np.ix_(kept, kept)
        value = _mean([compare(sample[name][0][place]) for sample in in_samples])
        metrics.append(Metric.measured(name, value, paired={"ceiling": compare(scores[place]).matched}, **judge))
    columns = [("real, with boxes", _framed(real.images, wanted))]
    columns += [
        (f"generated {k}, with boxes", _framed(images, wanted)) for k, images in enumerate(requested.samples, 1)
    ]
    return _Found(metrics, {"boxes": sum(map(len, wanted))}, columns, left_out=left_out)


def box_class(label: str) -> str | None:
    """The CheXpert class of a box's label, if there is one."""
    return next(iter(classes_of(label)), None)


def _box_scores(
    images: Images,
    asked: Sequence[spatial.Boxes],
    known: Sequence[Sequence[tuple[spatial.Box, int]]] | None,
    judges: Judges,
) -> dict[str, tuple[Array, dict[str, Any]]]:
    """(n, n) scores by metric, with their judge: (i, j) rates image i by study j's boxes."""
    grey: dict[str, Any] = {"extractor": "grey levels, 0 to 1"}
    scores = {
        "contrast_to_ring": (spatial.contrasts(images, asked, spatial.ring), grey),
        "contrast_to_other_side": (spatial.contrasts(images, asked, spatial.mirrored), grey),
    }
    if known is None or isinstance(judges.findings, NotComputed):
        return scores
    judge = {"extractor": judges.findings.name, "weights": judges.findings.weights}
    # Only the studies with boxes of known classes
    rows = [row for row, study_boxes in enumerate(known) if study_boxes]
    listed, logits = [known[row] for row in rows], judges.logits(images[rows])
    columns = [logits[:, [k for _, k in study_boxes]].mean(axis=1) for study_boxes in listed]
    scores["logit"] = np.stack(columns, axis=1), judge
    scores["response"] = spatial.responses(images[rows], listed, judges.logits), judge
    return scores


def _framed(images: Images, boxes: Sequence[spatial.Boxes]) -> Images:
    """The images with an outline around each box."""
    from PIL import Image, ImageDraw

    size = images.shape[-1]
    drawn: list[Any] = []
    for pixels, study_boxes in zip(images, boxes, strict=True):
        image = Image.fromarray(pixels)
        for box in study_boxes:
            corners = [round(side * size) for side in (box.x, box.y, box.x + box.w, box.y + box.h)]
            ImageDraw.Draw(image).rectangle(corners, outline=255)
        drawn.append(np.asarray(image))
    return np.stack(drawn)


def severity(requested: Requested, judges: Judges) -> _Found:
    """Rank correlation of the requested score with the score estimated from the prompt encoder's embedding."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    requested.check("a severity score")
    wanted, training_scores = (
        np.array([study.severity for study in part.studies], dtype=np.float64)
        for part in (requested.real, requested.training)
    )
    encoders = judges.encoders

    def embedded(images: Images) -> Array:
        return encoders.images(squares(images, encoders.size))

    regression: Any = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(0, 5, 11)))
    regression.fit(embedded(requested.training.images), training_scores)
    in_real, *in_samples = (
        regression.predict(embedded(images)) for images in (requested.real.images, *requested.samples)
    )
    extractor: dict[str, Any] = {"extractor": f"ridge on {encoders.name}", "weights": encoders.weights}
    metric = _correlated("severity_spearman", wanted, in_samples, in_real, judges, extractor, ranks=True)
    columns = [("requested", [f"severity {score:g}" for score in wanted]), *_images(requested)]
    return _Found([metric], {}, columns)


def demographics(requested: Requested, judges: Judges) -> _Found:
    """AUROC of the requested sex and Pearson's r of the requested age, as predicted by a small network."""
    requested.check("an age or a sex")
    studies = requested.real.studies
    judge = _patient_judge(requested.training, judges)
    in_real, *in_samples = (judge.logits(images) for images in (requested.real.images, *requested.samples))
    extractor: dict[str, Any] = {"extractor": "network of sex and age", "weights": judge.hash}
    metrics: list[Metric] = []
    left_out: dict[tuple[str, str], str] = {}

    # Sex: the network's first output
    rows = np.array([study.sex is not None for study in studies])
    female = np.array([float(study.sex == FEMALE) for study in studies])[rows]
    rarer = min(female.sum(), (1 - female).sum())
    if rarer < MIN_STUDIES:
        left_out["sex_auroc", ""] = f"{rarer:g} studies of the rarer sex: expected at least {MIN_STUDIES}"
    else:
        metrics.append(_sex(female, [logits[rows, 0] for logits in in_samples], in_real[rows, 0], judges, extractor))

    # Age: the mean of the other outputs
    rows = np.array([study.age is not None for study in studies])
    ages = np.array([float("nan") if study.age is None else study.age for study in studies])[rows]
    if len(ages) < MIN_STUDIES or not np.ptp(ages):
        left_out["age_pearson", ""] = f"{len(set(ages.tolist()))} different ages in {len(ages)} studies"
    else:
        of_real, *of_samples = (_mean_probability(logits[rows, 1:]) for logits in (in_real, *in_samples))
        metrics.append(_correlated("age_pearson", ages, of_samples, of_real, judges, extractor, ranks=False))
    if not metrics:
        raise NotComputed("; ".join(left_out.values()))
    texts = [f"sex {s.sex or 'unknown'}, age {'unknown' if s.age is None else f'{s.age:g}'}" for s in studies]
    return _Found(metrics, {}, [("requested", texts), *_images(requested)], left_out=left_out)


def _patient_judge(training: Annotated, judges: Judges) -> Classifier:
    """One network for both sex and age."""

    def labels(study: Study) -> list[float]:
        sex = float("nan") if study.sex is None else float(study.sex == FEMALE)
        return [sex, *(float("nan") if study.age is None else float(study.age > age) for age in AGES)]

    return train_classifier(
        training.images,
        np.array([labels(study) for study in training.studies]),
        (FEMALE, *(f"over {age}" for age in AGES)),
        config=judges.patient,
        folder=judges.cache / "classifier",
        device=judges.device,
    )


def _mean_probability(logits: Array) -> Array:
    return (1 / (1 + np.exp(-logits))).mean(axis=1)


def _sex(female: Array, samples: Sequence[Array], real: Array, judges: Judges, named: Mapping[str, Any]) -> Metric:
    from sklearn.metrics import roc_auc_score

    bootstrap = judges.bootstrap(len(female))
    value = _mean([compare_auc(scores, female, bootstrap, seed=judges.seed) for scores in samples])
    chance = permuted(female, samples, roc_auc_score, judges.seed)
    ceiling = auc(real, female, bootstrap)
    return Metric.measured("sex_auroc", value, paired={"ceiling": ceiling}, settings={"permutations": chance}, **named)


def _correlated(
    name: str,
    asked: Array,
    samples: Sequence[Array],
    real: Array,
    judges: Judges,
    named: Mapping[str, Any],
    *,
    ranks: bool,
) -> Metric:
    """The correlation of requested and estimated values, with a permutation test in the settings."""
    from scipy.stats import pearsonr, spearmanr

    bootstrap = judges.bootstrap(len(asked))
    value = _mean([compare_correlation(asked, scores, bootstrap, ranks=ranks, seed=judges.seed) for scores in samples])
    ceiling: Sampled = correlation(asked, real, bootstrap, ranks=ranks)

    def statistic(first: Array, second: Array) -> float:
        result: Any = spearmanr(first, second) if ranks else pearsonr(first, second)
        return float(result.statistic)

    chance = permuted(asked, samples, statistic, judges.seed)
    return Metric.measured(name, value, paired={"ceiling": ceiling}, settings={"permutations": chance}, **named)


def permuted(
    asked: Array, samples: Sequence[Array], statistic: Callable[[Array, Array], Any], seed: int, count: int = 999
) -> dict[str, float]:
    """A permutation test of the samples' mean statistic: one-sided p, and the central 95 % of the null distribution."""
    from scipy.stats import permutation_test

    def mean(order: Array) -> float:
        return float(np.mean([statistic(order, scores) for scores in samples]))

    test: Any = permutation_test(
        (asked,),
        mean,
        permutation_type="pairings",
        alternative="greater",
        n_resamples=count,
        rng=np.random.default_rng([seed, 4]),
    )
    low, high = np.quantile(test.null_distribution, [0.025, 0.975])
    return {"p": float(test.pvalue), "low": float(low), "high": float(high)}


def _images(requested: Requested) -> list[tuple[str, Any]]:
    return [("real", requested.real.images), *((f"generated {k}", one) for k, one in enumerate(requested.samples, 1))]


KINDS: Final[Mapping[str, Callable[[Requested, Judges], _Found]]] = {
    "mask": masks,
    "boxes": boxes,
    "severity": severity,
    "demographics": demographics,
}
"""By modality of the input."""
