"""The privacy family: how close a set of generations comes to the pictures that a model was trained on."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from xgem.data.cache import ArrayCache
from xgem.eval import privacy
from xgem.eval.memorisation import Memorisation, authenticity, memorisation_test
from xgem.eval.plots import histogram
from xgem.eval.privacy import DELTA, Closest, Rows
from xgem.eval.record import Example, FamilyResult, Metric, NotComputed
from xgem.eval.sets import EvalSet, check_disjoint
from xgem.eval.statistics import Array, Estimate
from xgem.types import DataError, InputError

if TYPE_CHECKING:
    from xgem.eval.reid import Reid

EXAMPLES: Final = 8
FLAGGED: Final = 100
_MOST_BYTES: Final = 1 << 30
_HELD_OUT: Final = "no held-out real pictures were given: a distance alone does not tell memory from likeness"


_DISTANCES: Final = ("distance", "distance_per_prompt", "distance_min", "authenticity", "nearer", "near")
_REID: Final = ("reid_score", "reid_score_per_prompt", "reid_score_max", "reid_count", "reid_count_prompts")
_TESTED: Final = ("n", "quantile", "threshold", "p_near", "p_shift", "p_value")
_COLUMNS: Final = (
    "Real Path", "Prompt", "Mean_reid_scores", "Max_reid_scores", "Mean_pixel_distance", "Min_pixel_distance",
    "Mean_latent_distance", "Min_latent_distance",
)  # fmt: skip


class Extractor(Protocol):
    """Pictures (b, h, w) uint8 to features (b, dim)."""

    @property
    def name(self) -> str: ...
    @property
    def weights(self) -> str: ...
    @property
    def dim(self) -> int: ...
    def __call__(self, pictures: NDArray[np.uint8]) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class _Space:
    """Distances in one space to training pictures: of the generations to the ``closest`` and, where asked for, to that
    of their ``own`` prompt; of held-out real pictures; of the closest training pictures to their own ``neighbours``."""

    name: str
    unit: str
    closest: Closest
    own: Closest | None
    held_out: Closest | None
    neighbours: Array
    extractor: str = ""
    weights: str = ""

    @property
    def title(self) -> str:
        return " ".join(part for part in (self.name, self.extractor) if part)

    @property
    def compared(self) -> Closest:
        return self.own or self.closest


@dataclass(frozen=True)
class _Run:
    generated: EvalSet
    training: EvalSet
    held_out: EvalSet | None
    prompts: Sequence[str]
    own: Rows | None
    size: int
    cache: Path | None
    draws: int
    seed: int
    quantile: float
    batch_size: int
    device: str

    def estimate(self, values: Array, statistic: privacy.Statistic = np.mean, *, seeds: bool = False) -> Estimate:
        """With its interval; ``seeds``: of all generations, those of a prompt drawn together."""
        groups = self.prompts if seeds else None
        return privacy.estimate(values, statistic, groups=groups, draws=self.draws, seed=self.seed)

    def features(self, items: EvalSet, extractor: Extractor) -> NDArray[np.float32]:
        """(n, dim), kept in the cache by pictures and weights."""

        def make() -> dict[str, NDArray[np.float32]]:
            parts = [extractor(part) for part in items.batches(self.size if items.pad else None, self.batch_size)]
            return {"features": np.concatenate(parts).astype(np.float32)}

        if self.cache is None:
            return make()["features"]
        key = {"pictures": items.sha256, "extractor": extractor.name, "weights": extractor.weights, "pad": items.pad}
        key["size"] = self.size if items.pad else 0
        return ArrayCache(self.cache).get_or_make("privacy", key, make)["features"].numpy()


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
    """Distances of generations to the closest training pictures, re-identification, and tests of memorisation.

    CheXGenBench 2.3 and 3.2: means over all generations, and over the prompts of each one's worst seed. Generations of
    one prompt are those that name one training picture (``pair``), or have the same prompt. Beside the paper's pixel
    distance stands the ``aligned`` one, which finds copies that were shifted or exposed otherwise.

    Args:
        generated: several seeds of a prompt are several items.
        training: what the model was trained on, all of it.
        held_out: real pictures of other patients, of the same source; None leaves the tests out.
        extractors: feature spaces of the latent distance; the paper's is RAD-DINO.
        reid: :func:`xgem.eval.reid.load_reid`.
        delta: margin of the re-identification score.
        own_prompt: compare a generation only with the training picture that it names (``pair``), as the published code
            does, instead of the closest. The tests of memorisation stay with the closest.
        size: side in pixels of the pixel distance; the generations' own unless given.
        quantile: of the held-out distances, below which a generation counts as near.
        cache: folder of features.

    Raises:
        DataError: ``held_out`` shares a patient or a picture with ``training``; ``own_prompt`` and a generation names
            no training picture.
    """
    generated, training = generated.with_pictures(), training.with_pictures()
    if held_out is not None:
        held_out = held_out.with_pictures()
        _check_held_out(training, held_out)
    prompts = [item.pair or item.prompt or item.id for item in generated.items]
    side = size or max(next(generated.batches(None, 1)).shape[1:])
    own = _named(generated, training) if own_prompt else None
    run = _Run(generated, training, held_out, prompts, own, side, cache, bootstrap, seed, quantile, batch_size, device)
    spaces = [_pixel_space(run), _aligned_space(run)]
    missing = [Metric.missing(name, "no feature extractor was given") for name in _names("latent") if not extractors]
    for extractor in extractors:
        try:
            spaces.append(_latent_space(run, extractor))
        except NotComputed as reason:
            missing += [Metric.missing(name, reason, extractor=extractor.name) for name in _names("latent")]
    scores = None
    try:
        scores = _scores(run, reid)
    except NotComputed as reason:
        missing += [Metric.missing(name, reason) for name in _REID]
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
            "compared with": "the training picture of the own prompt" if own_prompt else "the closest training picture",
            "prompts": len(set(prompts)),
            "sets": {one.name: {"n": len(one), "sha256": one.sha256} for one in (generated, training, held_out) if one},
        },
        details={space.title: _detail(run, space, tests[space.title]) for space in spaces},
        plots={
            f"Distance to the closest training picture, {space.title}": histogram(
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
            "held-out pictures must be of others"
        )
    check_disjoint(training, held_out)


def _named(generated: EvalSet, training: EvalSet) -> Rows:
    places = {item.id: row for row, item in enumerate(training.items)}
    names = [item.pair or item.id for item in generated.items]
    strangers = [name for name in names if name not in places]
    if strangers:
        raise DataError(
            f"{generated.name}: {len(strangers)} of {len(names)} generations name no picture of {training.name} "
            f"(first: {strangers[0]!r}); own_prompt takes a column `pair` with the picture whose prompt was used"
        )
    return np.array([places[name] for name in names], dtype=np.int64)


# ----------------------------------------------------------------------------------------------------------- spaces


def _in_chunks(items: EvalSet, size: int) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """The pictures in pieces of at most a gigabyte: training pictures are read again for each."""
    step = max(1, _MOST_BYTES // size**2)
    for start in range(0, len(items), step):
        part = slice(start, min(start + step, len(items)))
        yield part, items.subset(range(part.start, part.stop)).pictures(size)


def _closest(run: _Run, items: EvalSet, measure: Any, size: int, exclude: Rows | None = None) -> Closest:
    values, rows = np.empty(len(items)), np.empty(len(items), dtype=np.int64)
    for part, pictures in _in_chunks(items, size):
        left_out = None if exclude is None else exclude[part]
        found = measure(pictures, run.training.batches(size), exclude=left_out, device=run.device)
        values[part], rows[part] = found.values, found.rows
    return Closest(values, rows)


def _of_own_prompt(run: _Run, own: Rows) -> Closest:
    values = np.empty(len(own))
    for part, pictures in _in_chunks(run.generated, run.size):
        there, places = np.unique(own[part], return_inverse=True)
        theirs = run.training.subset(there).pictures(run.size)
        values[part] = privacy.pixel_distance(pictures, theirs, own_prompt=places).values
    return Closest(values, own)


def _pixel_space(run: _Run) -> _Space:
    own = None if run.own is None else _of_own_prompt(run, run.own)
    return _of_pictures(run, "pixel", "grey levels", privacy.pixel_distance, run.size, own)


def _of_pictures(run: _Run, name: str, unit: str, measure: Any, size: int, own: Closest | None = None) -> _Space:
    closest = _closest(run, run.generated, measure, size)
    held_out = None if run.held_out is None else _closest(run, run.held_out, measure, size)
    neighbours = _neighbours(closest, lambda rows: _closest(run, run.training.subset(rows), measure, size, rows))
    return _Space(name, unit, closest, own, held_out, neighbours)


def _aligned_space(run: _Run) -> _Space:
    return _of_pictures(run, "aligned", "standard deviations", privacy.aligned_distance, privacy.ALIGNED_SIZE)


def _latent_space(run: _Run, extractor: Extractor) -> _Space:
    generated, training = run.features(run.generated, extractor), run.features(run.training, extractor)
    nearest = partial(privacy.latent_distance, training=training, device=run.device)
    closest = nearest(generated)
    return _Space(
        "latent",
        "distance / sqrt(d)",
        closest,
        None if run.own is None else nearest(generated, own_prompt=run.own),
        None if run.held_out is None else nearest(run.features(run.held_out, extractor)),
        _neighbours(closest, lambda rows: nearest(training[rows], exclude=rows)),
        extractor.name,
        extractor.weights,
    )


def _scores(run: _Run, reid: Reid | None) -> Closest:
    if reid is None:
        raise NotComputed(
            "no re-identification network was given: train one with `xgem train reid`, or name published weights"
        )
    features = run.features(run.generated, reid), run.features(run.training, reid)
    return privacy.reidentification_score(*features, reid.weight, reid.bias, own_prompt=run.own, device=run.device)


def _neighbours(closest: Closest, measure: Callable[[Rows], Closest]) -> Array:
    """(n,) from each closest training picture to its own closest other one."""
    rows, places = np.unique(closest.rows, return_inverse=True)
    return measure(rows).values[places]


# ---------------------------------------------------------------------------------------------------------- numbers


def _names(space: str) -> list[str]:
    return [f"{space}_{what}" for what in _DISTANCES]


def _tested(run: _Run, space: _Space) -> Memorisation | NotComputed:
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


def _detail(run: _Run, space: _Space, test: Memorisation | NotComputed) -> dict[str, Any]:
    """The test's numbers, and which generations lie nearer to training than every held-out picture, nearest first."""
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


def _distances(run: _Run, space: _Space, test: Memorisation | NotComputed) -> list[Metric]:
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


def _reidentified(run: _Run, reid: Reid, scores: Closest, delta: float) -> list[Metric]:
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


def _unseen_scores(run: _Run, reid: Reid) -> Mapping[str, Estimate]:
    """What the network says of real pictures of other patients: how many closest pictures are taken for the same."""
    if run.held_out is None or run.own is not None:
        return {}
    features = run.features(run.held_out, reid), run.features(run.training, reid)
    found = privacy.reidentification_score(*features, reid.weight, reid.bias, device=run.device)
    return {"held-out real": run.estimate(found.values)}


# ----------------------------------------------------------------------------------------------------- to look at


def _worst(run: _Run, space: _Space) -> list[Example]:
    """The generations nearest to training, each beside its closest training picture."""
    order = np.argsort(space.closest.values, kind="stable")[:EXAMPLES]
    ours = run.generated.subset(order)
    theirs = run.training.subset(space.closest.rows[order])
    rows = zip(order, ours.items, theirs.items, ours.pictures(run.size), theirs.pictures(run.size), strict=True)
    return [
        Example(f"{one.id} (generated), {two.id} (training): {space.closest.values[i]:.4g} {space.title}", (x, y))
        for i, one, two, x, y in rows
    ]


def _table(run: _Run, spaces: Sequence[_Space], scores: Closest | None) -> str:
    """One row a prompt in CheXGenBench's columns; the path is that of the training picture at the nearest seed."""
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
