"""The privacy family: how close generated images come to the images that a model was trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from xgem.data.sets import EvalSet, KeptImages, check_disjoint
from xgem.eval import closest
from xgem.eval.closest import Run, Space
from xgem.eval.plots import histogram
from xgem.eval.record import Example, FamilyResult, Metric
from xgem.judges.extractors import Extractor
from xgem.metrics import privacy
from xgem.metrics.bootstrap import Estimate
from xgem.metrics.memorisation import Memorisation, authenticity, memorisation_test
from xgem.metrics.privacy import DELTA, Closest, Rows
from xgem.types import DataError, InputError, NotComputed
from xgem.utils.tables import csv_text

if TYPE_CHECKING:
    from xgem.judges.reid import Reid

EXAMPLES: Final = 8
FLAGGED: Final = 100
_HELD_OUT: Final = "no held-out real images were given: a distance alone does not tell memorisation from similarity"
_NO_REID: Final = "no re-identification network was given: train one with `xgem train reid`, or give published weights"

_DISTANCES: Final = ("distance", "distance_per_prompt", "distance_min", "authenticity", "nearer", "near")
_REID: Final = ("reid_score", "reid_score_per_prompt", "reid_score_max", "reid_count", "reid_count_prompts")
_TESTED: Final = ("n", "quantile", "threshold", "p_near", "p_shift", "p_value")
_COLUMNS: Final = (
    "Real Path", "Prompt", "Mean_reid_scores", "Max_reid_scores", "Mean_pixel_distance", "Min_pixel_distance",
    "Mean_latent_distance", "Min_latent_distance",
)  # fmt: skip


def evaluate(
    generated: EvalSet,
    training: EvalSet,
    held_out: EvalSet | None,
    *,
    extractors: Sequence[Extractor] | Mapping[str, Extractor | NotComputed] = (),
    reid: Reid | None = None,
    delta: float = DELTA,
    own_prompt: bool = False,
    size: int | None = None,
    quantile: float = 0.01,
    cache: Path | None = None,
    seed: int = 0,
    bootstrap: int = 1000,
    batch_size: int = 64,
    device: str = "cpu",
) -> FamilyResult:
    """Distances of generated images to the closest training images, re-identification, and tests of memorisation.

    CheXGenBench 2.3 and 3.2: means over all generated images, and over the worst sample of each prompt. Samples of one
    prompt are those that name the same training image (``pair``), or have the same prompt. In addition to the paper's
    pixel distance there is the ``aligned`` distance, which detects copies with a small shift or another exposure.

    Args:
        generated: several samples of a prompt are several items.
        training: all images that the model was trained on.
        held_out: real images of other patients, from the same source; None leaves out the tests.
        extractors: feature spaces of the latent distance, or by name with the reason for those that are not available;
            the paper uses RAD-DINO.
        reid: as returned by :func:`xgem.judges.reid.load_reid`.
        delta: threshold of the re-identification score.
        own_prompt: compare a generated image only with the training image that it names (``pair``), as the published
            code does, instead of the closest. The tests of memorisation always use the closest.
        size: side in pixels at which all images are read; by default that of the generated images.
        quantile: of the held-out distances, below which a generated image counts as near.
        cache: folder of features.

    Raises:
        DataError: ``held_out`` shares a patient or an image with ``training``; with ``own_prompt``, a generated image
            names no training image.
    """
    # The sets, and the prompt of each generated image; every space reads them, so their pixels stay in memory
    kept = KeptImages()
    generated, training = (replace(items.with_images(), kept=kept) for items in (generated, training))
    if held_out is not None:
        held_out = replace(held_out.with_images(), kept=kept)
        _check_held_out(training, held_out)
    prompts = [item.pair or item.prompt or item.id for item in generated.items]
    side = size or max(next(generated.batches(None, 1)).shape[1:])
    own = _named(generated, training) if own_prompt else None
    run = Run(generated, training, held_out, prompts, own, side, cache, bootstrap, seed, quantile, batch_size, device)

    # Distances in pixels and in every feature space
    spaces, missing = _spaces(run, extractors)
    tests = {space.title: _tested(run, space) for space in spaces}
    metrics = [metric for space in spaces for metric in _distances(run, space, tests[space.title])]

    # Re-identification
    scores = None if reid is None else closest.same_patient(run, reid, generated, own)
    if reid is not None and scores is not None:
        metrics += _reidentified(run, reid, scores, delta)
    else:
        missing += [Metric.missing(name, _NO_REID) for name in _REID]
    return FamilyResult(
        family="privacy",
        metrics=[*metrics, *missing],
        settings=_settings(run, delta),
        details={space.title: _detail(run, space, tests[space.title]) for space in spaces},
        plots={f"Distance to the closest training image, {space.title}": _histogram(space) for space in spaces},
        examples=_worst(run, spaces[-1]),
        tables={"privacy_metrics.csv": _table(run, spaces, scores)},
    )


def _settings(run: Run, delta: float) -> dict[str, Any]:
    """The settings on which the metrics depend."""
    compared = "the closest training image" if run.own is None else "the training image of the own prompt"
    sets = (run.generated, run.training, run.held_out)
    return {
        "seed": run.seed,
        "bootstrap": run.draws,
        "size": run.size,
        "delta": delta,
        "quantile": run.quantile,
        "compared with": compared,
        "prompts": len(set(run.prompts)),
        "sets": {items.name: {"n": len(items), "sha256": items.sha256} for items in sets if items},
    }


def _spaces(
    run: Run, extractors: Sequence[Extractor] | Mapping[str, Extractor | NotComputed]
) -> tuple[list[Space], list[Metric]]:
    """The distances in all spaces, and the metrics of those that cannot be computed."""
    spaces = [closest.pixel_space(run), closest.aligned_space(run)]
    keys = _names("latent")
    missing = [] if extractors else [Metric.missing(key, "no feature extractor was given") for key in keys]
    by_name = extractors if isinstance(extractors, Mapping) else {extractor.name: extractor for extractor in extractors}
    for name, extractor in by_name.items():
        try:
            if isinstance(extractor, NotComputed):
                raise extractor
            spaces.append(closest.latent_space(run, extractor))
        except NotComputed as reason:
            missing += [Metric.missing(key, reason, extractor=name) for key in keys]
    return spaces, missing


def _histogram(space: Space) -> bytes:
    held_out = {} if space.held_out is None else {"held-out real": space.held_out.values}
    return histogram({"generated": space.closest.values} | held_out, label=space.unit)


def _check_held_out(training: EvalSet, held_out: EvalSet) -> None:
    shared = {item.subject for item in training.items if item.subject} & {item.subject for item in held_out.items}
    if shared:
        raise DataError(
            f"{held_out.name}: {len(shared)} of its patients are in {training.name} too (first: {min(shared)}); "
            "held-out images must be of other patients"
        )
    check_disjoint(training, held_out)


def _named(generated: EvalSet, training: EvalSet) -> Rows:
    places = {item.id: row for row, item in enumerate(training.items)}
    names = [item.pair or item.id for item in generated.items]
    unknown = [name for name in names if name not in places]
    if unknown:
        raise DataError(
            f"{generated.name}: {len(unknown)} of {len(names)} generated images name no image of {training.name} "
            f"(first: {unknown[0]!r}); own_prompt needs a column `pair` with the image whose prompt was used"
        )
    return np.array([places[name] for name in names], dtype=np.int64)


def _names(space: str) -> list[str]:
    return [f"{space}_{what}" for what in _DISTANCES]


def _tested(run: Run, space: Space) -> Memorisation | NotComputed:
    """The test on one random sample per prompt, as the samples of a prompt are not independent."""
    if space.held_out is None:
        return NotComputed(_HELD_OUT)
    order = np.random.default_rng([run.seed, 1]).permutation(len(run.prompts))
    _, first = np.unique(np.array(run.prompts)[order], return_index=True)
    values = space.closest.values[np.sort(order[first])]
    try:
        return memorisation_test(values, space.held_out.values, quantile=run.quantile, draws=run.draws, seed=run.seed)
    except InputError as reason:
        return NotComputed(reason)


def _detail(run: Run, space: Space, test: Memorisation | NotComputed) -> dict[str, Any]:
    """The test's numbers, and the generated images nearer to training than every held-out image, nearest first."""
    if isinstance(test, NotComputed) or space.held_out is None:
        return {"not_computed": str(test)}
    values, rows = space.closest.values, space.closest.rows
    order = np.argsort(values, kind="stable")
    flagged = [
        {
            "generated": run.generated.items[i].id,
            "training": run.training.items[int(rows[i])].id,
            "distance": float(values[i]),
        }
        for i in order[:FLAGGED]
        if values[i] < space.held_out.values.min()
    ]
    return {key: getattr(test, key) for key in _TESTED} | {"nearer than any held-out": flagged}


def _distances(run: Run, space: Space, test: Memorisation | NotComputed) -> list[Metric]:
    """All distance metrics of one space."""
    mean, per_prompt, least, authentic, nearer, near = _names(space.name)
    common: dict[str, Any] = {"extractor": space.extractor, "weights": space.weights}
    values = space.compared.values
    unseen = None if space.held_out is None or space.own is not None else run.estimate(space.held_out.values)
    nearest_samples = run.estimate(privacy.per_prompt(values, run.prompts, np.min))
    metrics = [
        Metric.measured(mean, run.estimate(values, seeds=True), unpaired={"held-out real": unseen}, **common),
        Metric(per_prompt, nearest_samples, settings={"over": "prompts, the nearest sample of each"}, **common),
        Metric(least, run.estimate(values, np.min, seeds=True), **common),
        Metric(
            authentic,
            authenticity(space.closest.values, space.neighbours, groups=run.prompts, draws=run.draws, seed=run.seed),
            **common,
        ),
    ]
    if isinstance(test, NotComputed):
        return metrics + [Metric.missing(name, test, **common) for name in (nearer, near)]
    common["settings"] = {key: getattr(test, key) for key in _TESTED}
    return [*metrics, Metric(nearer, test.nearer, **common), Metric(near, test.share, **common)]


def _reidentified(run: Run, reid: Reid, scores: Closest, delta: float) -> list[Metric]:
    prompts = privacy.per_prompt(scores.values, run.prompts, np.max)
    common: dict[str, Any] = {"extractor": reid.name, "weights": reid.weights}
    above = privacy.count_above(delta)
    worst = "prompts, the worst sample of each"
    unseen = {"held-out real": _held_out_score(run, reid)}
    numbers = (
        (run.estimate(scores.values, seeds=True), unseen, {}),
        (run.estimate(prompts), {}, {"over": worst}),
        (run.estimate(scores.values, np.max, seeds=True), {}, {}),
        (run.estimate(scores.values, above, seeds=True), {}, {"delta": delta}),
        (run.estimate(prompts, above), {}, {"delta": delta, "over": worst}),
    )
    return [
        Metric.measured(name, value, unpaired=unpaired, settings=settings, **common)
        for name, (value, unpaired, settings) in zip(_REID, numbers, strict=True)
    ]


def _held_out_score(run: Run, reid: Reid) -> Estimate | None:
    """The mean score of real images of other patients with their closest training images, for comparison."""
    if run.held_out is None or run.own is not None:
        return None
    return run.estimate(closest.same_patient(run, reid, run.held_out).values)


def _worst(run: Run, space: Space) -> list[Example]:
    """The generated images nearest to training, each with its closest training image."""
    order = np.argsort(space.closest.values, kind="stable")[:EXAMPLES]
    generated = run.generated.subset(order)
    training = run.training.subset(space.closest.rows[order])
    rows = zip(
        order, generated.items, training.items, generated.images(run.size), training.images(run.size), strict=True
    )
    return [
        Example(f"{a.id} (generated), {b.id} (training): {space.closest.values[i]:.4g} {space.title}", (x, y))
        for i, a, b, x, y in rows
    ]


def _table(run: Run, spaces: Sequence[Space], scores: Closest | None) -> str:
    """One row per prompt in CheXGenBench's columns; the path is that of the training image closest to any sample."""
    pixel = spaces[0].compared
    latent = next((space.compared for space in spaces if space.name == "latent"), None)
    by_prompt: dict[str, list[int]] = {}
    for row, prompt in enumerate(run.prompts):
        by_prompt.setdefault(prompt, []).append(row)
    lines: list[list[Any]] = []
    for rows in by_prompt.values():
        nearest = rows[int(np.argmin(pixel.values[rows]))]
        numbers: list[float | None] = []
        for distances, worst in ((scores, np.max), (pixel, np.min), (latent, np.min)):
            if distances is None:
                numbers += [None, None]
            else:
                numbers += [float(np.mean(distances.values[rows])), float(worst(distances.values[rows]))]
        file = run.training.items[int(pixel.rows[nearest])].file
        lines.append([file, run.generated.items[rows[0]].prompt, *numbers])
    return csv_text(_COLUMNS, lines)
