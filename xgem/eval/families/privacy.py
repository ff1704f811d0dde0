"""The privacy family: how close a set of generations comes to the images that a model was trained on."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from xgem.data.sets import EvalSet, check_disjoint
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

if TYPE_CHECKING:
    from xgem.judges.reid import Reid

EXAMPLES: Final = 8
FLAGGED: Final = 100
_HELD_OUT: Final = "no held-out real images were given: a distance alone does not tell memory from likeness"
_NO_REID: Final = "no re-identification network was given: train one with `xgem train reid`, or name published weights"

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
    extractors: Sequence[Extractor] = (),
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
    """Distances of generations to the closest training images, re-identification, and tests of memorisation.

    CheXGenBench 2.3 and 3.2: means over all generations, and over the prompts of each one's worst seed. Generations of
    one prompt are those that name one training image (``pair``), or have the same prompt. Beside the paper's pixel
    distance stands the ``aligned`` one, which finds copies that were shifted or exposed otherwise.

    Args:
        generated: several seeds of a prompt are several items.
        training: what the model was trained on, all of it.
        held_out: real images of other patients, of the same source; None leaves the tests out.
        extractors: feature spaces of the latent distance; the paper's is RAD-DINO.
        reid: :func:`xgem.judges.reid.load_reid`.
        delta: margin of the re-identification score.
        own_prompt: compare a generation only with the training image that it names (``pair``), as the published code
            does, instead of the closest. The tests of memorisation stay with the closest.
        size: side in pixels at which all images are read; the generations' own unless given.
        quantile: of the held-out distances, below which a generation counts as near.
        cache: folder of features.

    Raises:
        DataError: ``held_out`` shares a patient or an image with ``training``; ``own_prompt`` and a generation names
            no training image.
    """
    generated, training = generated.with_images(), training.with_images()
    if held_out is not None:
        held_out = held_out.with_images()
        _check_held_out(training, held_out)
    prompts = [item.pair or item.prompt or item.id for item in generated.items]
    side = size or max(next(generated.batches(None, 1)).shape[1:])
    own = _named(generated, training) if own_prompt else None
    run = Run(generated, training, held_out, prompts, own, side, cache, bootstrap, seed, quantile, batch_size, device)
    spaces = [closest.pixel_space(run), closest.aligned_space(run)]
    missing = [Metric.missing(name, "no feature extractor was given") for name in _names("latent") if not extractors]
    for extractor in extractors:
        try:
            spaces.append(closest.latent_space(run, extractor))
        except NotComputed as reason:
            missing += [Metric.missing(name, reason, extractor=extractor.name) for name in _names("latent")]
    scores = None if reid is None else closest.same_patient(run, reid, generated, own)
    missing += [Metric.missing(name, _NO_REID) for name in _REID if scores is None]
    tests = {space.title: _tested(run, space) for space in spaces}
    metrics = [metric for space in spaces for metric in _distances(run, space, tests[space.title])]
    if reid is not None and scores is not None:
        metrics += _reidentified(run, reid, scores, delta)
    return FamilyResult(
        family="privacy",
        metrics=[*metrics, *missing],
        settings={
            "seed": seed,
            "bootstrap": bootstrap,
            "size": side,
            "delta": delta,
            "quantile": quantile,
            "compared with": "the training image of the own prompt" if own_prompt else "the closest training image",
            "prompts": len(set(prompts)),
            "sets": {one.name: {"n": len(one), "sha256": one.sha256} for one in (generated, training, held_out) if one},
        },
        details={space.title: _detail(run, space, tests[space.title]) for space in spaces},
        plots={
            f"Distance to the closest training image, {space.title}": histogram(
                {"generated": space.closest.values}
                | ({} if space.held_out is None else {"held-out real": space.held_out.values}),
                label=space.unit,
            )
            for space in spaces
        },
        examples=_worst(run, spaces[-1]),
        tables={"privacy_metrics.csv": _table(run, spaces, scores)},
    )


def _check_held_out(training: EvalSet, held_out: EvalSet) -> None:
    shared = {item.subject for item in training.items if item.subject} & {item.subject for item in held_out.items}
    if shared:
        raise DataError(
            f"{held_out.name}: {len(shared)} of its patients are in {training.name} too (first: {min(shared)}); "
            "held-out images must be of others"
        )
    check_disjoint(training, held_out)


def _named(generated: EvalSet, training: EvalSet) -> Rows:
    places = {item.id: row for row, item in enumerate(training.items)}
    names = [item.pair or item.id for item in generated.items]
    strangers = [name for name in names if name not in places]
    if strangers:
        raise DataError(
            f"{generated.name}: {len(strangers)} of {len(names)} generations name no image of {training.name} "
            f"(first: {strangers[0]!r}); own_prompt takes a column `pair` with the image whose prompt was used"
        )
    return np.array([places[name] for name in names], dtype=np.int64)


def _names(space: str) -> list[str]:
    return [f"{space}_{what}" for what in _DISTANCES]


def _tested(run: Run, space: Space) -> Memorisation | NotComputed:
    """The test on one generation a prompt, chosen at random: seeds of one prompt are not independent."""
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
    """The test's numbers, and which generations lie nearer to training than every held-out image, nearest first."""
    if isinstance(test, NotComputed) or space.held_out is None:
        return {"not_computed": str(test)}
    values, rows = space.closest.values, space.closest.rows
    order = np.argsort(values, kind="stable")
    found = [int(i) for i in order[:FLAGGED] if values[i] < space.held_out.values.min()]
    flagged = [
        {
            "generated": run.generated.items[i].id,
            "training": run.training.items[int(rows[i])].id,
            "distance": float(values[i]),
        }
        for i in found
    ]
    return {key: getattr(test, key) for key in _TESTED} | {"nearer than any held-out": flagged}


def _distances(run: Run, space: Space, test: Memorisation | NotComputed) -> list[Metric]:
    mean, worst, least, authentic, nearer, near = _names(space.name)
    common: dict[str, Any] = {"extractor": space.extractor, "weights": space.weights}
    values = space.compared.values
    prompts = privacy.per_prompt(values, run.prompts, np.min)
    unseen = (
        {}
        if space.held_out is None or space.own is not None
        else {"held-out real": run.estimate(space.held_out.values)}
    )
    higher: dict[str, Any] = {**common, "higher_is_better": True}
    found = [
        Metric(mean, run.estimate(values, seeds=True), references=unseen, **higher),
        Metric(worst, run.estimate(prompts), settings={"over": "prompts, the nearest seed of each"}, **higher),
        Metric(least, run.estimate(values, np.min, seeds=True), **higher),
        Metric(
            authentic,
            authenticity(space.closest.values, space.neighbours, groups=run.prompts, draws=run.draws, seed=run.seed),
            **higher,
        ),
    ]
    if isinstance(test, NotComputed):
        return found + [Metric.missing(name, test, **common) for name in (nearer, near)]
    said = {key: getattr(test, key) for key in _TESTED}
    lower: dict[str, Any] = {**common, "higher_is_better": False, "settings": said}
    return [*found, Metric(nearer, test.nearer, **lower), Metric(near, test.share, **lower)]


def _reidentified(run: Run, reid: Reid, scores: Closest, delta: float) -> list[Metric]:
    prompts = privacy.per_prompt(scores.values, run.prompts, np.max)
    common: dict[str, Any] = {"extractor": reid.name, "weights": reid.weights, "higher_is_better": False}
    above = privacy.count_above(delta)
    numbers = (
        (run.estimate(scores.values, seeds=True), _unseen_scores(run, reid), {}),
        (run.estimate(prompts), {}, {"over": "prompts, the worst seed of each"}),
        (run.estimate(scores.values, np.max, seeds=True), {}, {}),
        (run.estimate(scores.values, above, seeds=True), {}, {"delta": delta}),
        (run.estimate(prompts, above), {}, {"delta": delta, "over": "prompts, the worst seed of each"}),
    )
    return [
        Metric(name, value, references=references, settings=settings, **common)
        for name, (value, references, settings) in zip(_REID, numbers, strict=True)
    ]


def _unseen_scores(run: Run, reid: Reid) -> Mapping[str, Estimate]:
    """What the network says of real images of other patients: how many closest images are taken for the same."""
    if run.held_out is None or run.own is not None:
        return {}
    return {"held-out real": run.estimate(closest.same_patient(run, reid, run.held_out).values)}


def _worst(run: Run, space: Space) -> list[Example]:
    """The generations nearest to training, each beside its closest training image."""
    order = np.argsort(space.closest.values, kind="stable")[:EXAMPLES]
    ours = run.generated.subset(order)
    theirs = run.training.subset(space.closest.rows[order])
    rows = zip(order, ours.items, theirs.items, ours.images(run.size), theirs.images(run.size), strict=True)
    return [
        Example(f"{one.id} (generated), {two.id} (training): {space.closest.values[i]:.4g} {space.title}", (x, y))
        for i, one, two, x, y in rows
    ]


def _table(run: Run, spaces: Sequence[Space], scores: Closest | None) -> str:
    """One row a prompt in CheXGenBench's columns; the path is that of the training image at the nearest seed."""
    pixel = spaces[0].compared
    latent = next((space.compared for space in spaces if space.name == "latent"), None)
    rows: dict[str, list[int]] = {}
    for row, prompt in enumerate(run.prompts):
        rows.setdefault(prompt, []).append(row)
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(_COLUMNS)
    for found in rows.values():
        nearest = found[int(np.argmin(pixel.values[found]))]
        file, prompt = run.training.items[int(pixel.rows[nearest])].file, run.generated.items[found[0]].prompt
        numbers: list[float | str] = []
        for values, worst in ((scores, np.max), (pixel, np.min), (latent, np.min)):
            numbers += (
                ["", ""]
                if values is None
                else [float(np.mean(values.values[found])), float(worst(values.values[found]))]
            )
        table.writerow([file, prompt, *numbers])
    return stream.getvalue()
