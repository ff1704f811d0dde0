"""What was asked for beside what is seen in the generated images, by kind of input: the measures of ``eval control``.

Each kind is given alone, so that nothing else can give the answer away. Judges are trained on real training images.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from xgem.data.annotations import BOX_CLASSES
from xgem.data.outlines import Outlines, united
from xgem.data.study import read_study
from xgem.eval.control_run import FEMALE, MIN_STUDIES, MIN_TRAINING, VIEW, Annotated, Family, NotComputed, Run
from xgem.eval.material import Images, load_material
from xgem.eval.measures import measure_images
from xgem.eval.results import Measure, average_measures
from xgem.eval.route import Route
from xgem.eval.routes import generate, judged
from xgem.judges.segmenter import train_segmenter
from xgem.labels.vocabulary import classes_of
from xgem.metrics import agreement, spatial
from xgem.metrics.auc import auc, compare_auc
from xgem.metrics.bootstrap import Array, Comparison, Sampled
from xgem.metrics.correlation import compare_correlation, correlation
from xgem.types import DataError

BOX_LABELS: Final[dict[str, str]] = {name: classes_of(name)[0] for name in BOX_CLASSES}
"""By class of boxes the class of findings that it stands for."""


def masks(run: Run) -> Family:
    """Dice and IoU of the mask that was asked for with the same structure, as a segmenter finds it."""
    transform, settings = run.evaluated.transform, run.settings
    found, training = run.both(lambda study: bool(study.masks), "masks")
    given = [read_study(study, transform).masks for study in found.studies]
    learnt = [united(read_study(study, transform).masks) for study in training.studies]
    asked = [united(one) for one in given]
    counts = {
        name: (sum(name in one for one in asked), sum(name in one for one in learnt))
        for name in sorted({name for one in (*asked, *learnt) for name in one})
    }
    structures = [name for name, (n, m) in counts.items() if n >= MIN_STUDIES and m >= MIN_TRAINING]
    left_out = {
        name: f"outlined in {n} evaluated and {m} training studies: expected at least {MIN_STUDIES} and {MIN_TRAINING}"
        for name, (n, m) in counts.items()
        if name not in structures
    }
    if not structures:
        raise NotComputed(f"no structure is outlined often enough: {left_out}")
    samples = run.generate("mask", given)
    segmenter = train_segmenter(
        training.images,
        Outlines.stacked(learnt, structures, transform.size),
        config=settings.segmenter,
        cache=run.cache,
        device=run.device,
    )
    truth = Outlines.stacked(asked, structures, transform.size)
    real, seen = segmenter.masks(found.images), [segmenter.masks(one) for one in samples]

    def measured(images: Any) -> dict[str, Measure]:
        measures: dict[str, Measure] = {}
        for k, name in enumerate(structures):
            rows = truth.known[:, k]
            compare = run.bootstrap(int(rows.sum())).matched_and_shuffled
            scores, best = (spatial.overlaps(one[rows, k], truth.masks[rows, k]) for one in (images, real))
            for kind, own, ceiling in zip(("dice", "iou"), scores, best, strict=True):
                measures[f"{kind} {name}"] = Measure.of(
                    compare(own), reference={"ceiling": compare(ceiling).matched}, space=f"segmenter {segmenter.hash}"
                )
        return measures

    columns = [("asked", _drawn(truth.masks)), ("real", found.images), ("found in real", _drawn(real))]
    for i, (images, one) in enumerate(zip(samples, seen, strict=True), 1):
        columns += [(f"generated {i}", images), (f"found {i}", _drawn(one))]
    details = {"segmenter": segmenter.hash, "training_images": len(training)}
    return Family(len(found), average_measures([measured(one) for one in seen]), details, columns, left_out)


def _drawn(masks: spatial.Mask) -> Images:
    """(n, k, s, s) -> (n, s, s): each structure in a grey of its own."""
    greys = np.linspace(255, 80, masks.shape[1]).astype(np.uint8)
    return (masks * greys[:, None, None]).max(axis=1).astype(np.uint8)


def boxes(run: Run) -> Family:
    """Contrast of the box that was asked for, and what the classifier sees of its class there."""
    found = run.annotated(run.split, lambda study: bool(study.boxes))
    if len(found) < MIN_STUDIES:
        raise NotComputed(f"split {run.split!r} has {len(found)} studies with boxes: expected at least {MIN_STUDIES}")
    asked = [read_study(study, run.evaluated.transform).boxes for study in found.studies]
    samples = run.generate("boxes", [[{"label": b.label, "bbox": [b.x, b.y, b.w, b.h]} for b in own] for own in asked])
    judge = run.classifier
    classes = judge.classes if judge is not None else ()
    known = [
        [(box, classes.index(BOX_LABELS[box.label])) for box in own if BOX_LABELS[box.label] in classes]
        for own in asked
    ]
    rows = [i for i, own in enumerate(known) if own]
    left_out: dict[str, str] = {}
    if judge is None or len(rows) < MIN_STUDIES:
        reason = f"{len(rows)} studies have boxes of a class that the classifier knows: expected at least {MIN_STUDIES}"
        reason = "the training images have no labels to train a classifier on" if judge is None else reason
        left_out |= {"logit": reason, "response": reason}

    def scores(images: Images) -> dict[str, tuple[Array, str]]:
        found = {
            "contrast to ring": (spatial.contrasts(images, asked, spatial.ring), "grey, 0 to 1"),
            "contrast to other side": (spatial.contrasts(images, asked, spatial.mirrored), "grey, 0 to 1"),
        }
        if judge is not None and not left_out:
            own, listed, space = images[rows], [known[i] for i in rows], f"classifier {judge.hash}"
            logits = judge.logits(own)
            columns = [logits[:, [k for _, k in boxes]].mean(axis=1) for boxes in listed]
            found["logit"] = np.stack(columns, axis=1), space
            found["response"] = spatial.responses(own, listed, judge.logits), space
        return found

    real = scores(found.images)

    def measured(images: Images) -> dict[str, Measure]:
        measures: dict[str, Measure] = {}
        for name, (own, space) in scores(images).items():
            kept = np.flatnonzero(np.isfinite(np.diag(own)))
            if len(kept) < MIN_STUDIES:
                left_out[name] = f"{len(kept)} studies have it: expected at least {MIN_STUDIES}"
                continue
            compare, place = run.bootstrap(len(kept)).matched_and_shuffled, np.ix_(kept, kept)
            ceiling = compare(real[name][0][place]).matched
            measures[name] = Measure.of(compare(own[place]), reference={"ceiling": ceiling}, space=space)
        return measures

    columns = [("asked, real", _framed(found.images, asked))]
    columns += [(f"asked, generated {i}", _framed(one, asked)) for i, one in enumerate(samples, 1)]
    details = {"classifier": judge.hash if judge else None, "boxes": sum(map(len, asked))}
    return Family(len(found), average_measures([measured(one) for one in samples]), details, columns, left_out)


def _framed(images: Images, boxes: Sequence[spatial.Boxes]) -> Images:
    """The images with an outline around each box."""
    from PIL import Image, ImageDraw

    size = images.shape[-1]
    drawn: list[Any] = []
    for pixels, own in zip(images, boxes, strict=True):
        image = Image.fromarray(pixels)
        for box in own:
            corners = [round(side * size) for side in (box.x, box.y, box.x + box.w, box.y + box.h)]
            ImageDraw.Draw(image).rectangle(corners, outline=255)
        drawn.append(np.asarray(image))
    return np.stack(drawn)


def severity(run: Run) -> Family:
    """Rank correlation of the score that was asked for with the one estimated from the judge's embedding."""
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    found, training = run.both(lambda study: study.severity is not None, "a severity score")
    asked, learnt = (np.array([one.severity for one in part.studies], dtype=np.float64) for part in (found, training))
    samples = run.generate("severity", asked.tolist())
    regressor: Any = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(0, 5, 11)))
    regressor.fit(run.embed(VIEW, training.images), learnt)
    estimated, *seen = (regressor.predict(run.embed(VIEW, one)) for one in (found.images, *samples))
    space = f"ridge on {run.judge.name} {run.judge.hash}, {len(training)} training images"
    measure, chance = _correlated(asked, seen, estimated, run, space, ranks=True)
    columns = [("asked", [f"severity {one:g}" for one in asked]), *_beside(found, samples)]
    details = {"training_images": len(training), "permutations": {"spearman": chance}}
    return Family(len(found), {"spearman": measure}, details, columns)


def demographics(run: Run) -> Family:
    """Sex (AUC) and age (Pearson's r) that were asked for, beside those that a small network sees."""
    from sklearn.metrics import roc_auc_score

    found, training = run.both(lambda study: study.sex is not None or study.age is not None, "an age or a sex")
    asked = [
        {name: value for name in ("sex", "age") if (value := getattr(one, name)) is not None} for one in found.studies
    ]
    wanted = {name: np.array([name in one for one in asked]) for name in ("sex", "age")}
    samples = run.generate("demographics", asked)
    judge = run.patient_judge(training)
    real, *seen = (judge.logits(one) for one in (found.images, *samples))
    measures: dict[str, Measure] = {}
    chances: dict[str, Any] = {}
    left_out: dict[str, str] = {}
    space = f"network {judge.hash}, {len(training)} training images"

    rows = wanted["sex"]
    female = np.array([float(one.get("sex") == FEMALE) for one in asked])[rows]
    least = min(female.sum(), (1 - female).sum())
    if least < MIN_STUDIES:
        left_out["sex AUC"] = f"{least:g} studies of the rarer sex: expected at least {MIN_STUDIES}"
    else:
        own = run.bootstrap(len(female))
        ceiling = auc(real[rows, 0], female, own)

        def compared(logits: Array) -> Comparison:
            return compare_auc(logits, female, own, seed=run.settings.seed)

        parts = [logits[rows, 0] for logits in seen]
        measures["sex AUC"] = _averaged(parts, compared, ceiling, space)
        chances["sex AUC"] = permuted(female, parts, roc_auc_score, run.settings.seed)

    rows = wanted["age"]
    ages = np.array([float(one.get("age", np.nan)) for one in asked])[rows]
    if len(ages) < MIN_STUDIES or not np.ptp(ages):
        left_out["age r"] = f"{len(set(ages.tolist()))} different ages in {len(ages)} studies"
    else:
        guesses = [_mean_probability(logits[rows, 1:]) for logits in seen]
        best = _mean_probability(real[rows, 1:])
        measures["age r"], chances["age r"] = _correlated(ages, guesses, best, run, space, ranks=False)
    if not measures:
        raise NotComputed(str(left_out))
    texts = [", ".join(f"{name} {value}" for name, value in one.items()) for one in asked]
    details = {"network": judge.hash, "training_images": len(training), "permutations": chances}
    return Family(len(found), measures, details, [("asked", texts), *_beside(found, samples)], left_out)


def _mean_probability(logits: Array) -> Array:
    from scipy.special import expit

    return expit(logits).mean(axis=1)


def _correlated(
    asked: Array, seen: Sequence[Array], real: Array, run: Run, space: str, *, ranks: bool
) -> tuple[Measure, dict[str, float]]:
    """The correlation of what was asked for with what is seen, and what permutations of the latter give."""
    from scipy.stats import pearsonr, spearmanr

    own = run.bootstrap(len(asked))
    ceiling = correlation(asked, real, own, ranks=ranks)

    def compared(estimates: Array) -> Comparison:
        return compare_correlation(asked, estimates, own, ranks=ranks, seed=run.settings.seed)

    def statistic(first: Array, second: Array) -> float:
        correlation: Any = spearmanr(first, second) if ranks else pearsonr(first, second)
        return float(correlation.statistic)

    chance = permuted(asked, seen, statistic, run.settings.seed)
    return _averaged(seen, compared, ceiling, space), chance


def _averaged(seen: Sequence[Array], compared: Callable[[Array], Comparison], ceiling: Sampled, space: str) -> Measure:
    parts = [{"one": Measure.of(compared(one), reference={"ceiling": ceiling}, space=space)} for one in seen]
    return average_measures(parts)["one"]


def permuted(
    asked: Array, seen: Sequence[Array], statistic: Callable[[Array, Array], Any], seed: int, count: int = 999
) -> dict[str, float]:
    """A permutation test of the samples' mean statistic: one-sided p, and 95 % of what chance gives."""
    from scipy.stats import permutation_test

    def mean(order: Array) -> float:
        return float(np.mean([statistic(order, one) for one in seen]))

    found: Any = permutation_test(
        (asked,),
        mean,
        permutation_type="pairings",
        alternative="greater",
        n_resamples=count,
        rng=np.random.default_rng([seed, 4]),
    )
    low, high = np.quantile(found.null_distribution, [0.025, 0.975])
    return {"p": float(found.pvalue), "low": float(low), "high": float(high)}


def _beside(found: Annotated, samples: Sequence[Images]) -> list[tuple[str, Any]]:
    return [("real", found.images), *((f"generated {i}", one) for i, one in enumerate(samples, 1))]


def text(run: Run) -> Family:
    """What ``eval routes`` measures of the route from report to frontal, in the judge's space."""
    model, settings = run.written, run.settings
    if "report" not in run.evaluated.inputs:
        raise NotComputed(f"{run.evaluated.name} takes no report")
    if run.classifier is None:
        raise NotComputed("the training images have no labels to train a classifier on")
    try:
        material = load_material(
            run.manifest, run.split, model, run.cache, limit=settings.limit, seed=settings.seed, progress=run.progress
        )
    except DataError as error:
        raise NotComputed(str(error)) from None
    bootstrap = run.bootstrap(material.n)
    real = judged([VIEW], model, material, run.training, bootstrap, settings, run.cache, run.device)[VIEW]
    route = Route(("report",), VIEW)
    samples = run.shown(route, material.n, lambda advance: generate(model, route, material, settings, advance=advance))
    prompts = run.embed("report", list(material.reports))
    parts = [measure_images(one, real, material, prompts, model, bootstrap, seed=settings.seed) for one in samples]
    measures = average_measures([one for one, _ in parts])
    ceiling = bootstrap.matched_and_shuffled(agreement.cosine(prompts, real.embedded)).matched
    measures["prompt_agreement"] = replace(measures["prompt_agreement"], reference={"ceiling": ceiling})
    columns = [("report", list(material.reports)), ("real", material.images[VIEW])]
    columns += [(f"generated {i}", one) for i, one in enumerate(samples, 1)]
    return Family(material.n, measures, {"classifier": real.judge.hash, **parts[0][1]}, columns)


FAMILIES: Final[Mapping[str, Callable[[Run], Family]]] = {
    "masks": masks,
    "boxes": boxes,
    "severity": severity,
    "demographics": demographics,
    "text": text,
}
