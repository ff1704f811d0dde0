"""How close a set of generations comes to a training set: in pixels, in feature spaces, by re-identification.

All sets are read at one size, that of the generations: a difference of resolution would make every generation seem
farther from training than held-out images are, and so hide copies.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.data.sets import EvalSet
from xgem.eval.features import Features, extract
from xgem.judges.extractors import Extractor
from xgem.metrics import privacy
from xgem.metrics.bootstrap import Array, Estimate
from xgem.metrics.privacy import Closest, Rows

if TYPE_CHECKING:
    from xgem.judges.reid import Reid

_MOST_BYTES: Final = 1 << 30


@dataclass(frozen=True)
class Space:
    """Distances in one space to training images: of the generations to the ``closest`` and, if requested, to that
    of their ``own`` prompt; of held-out real images; of the closest training images to their own ``neighbours``."""

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
class Run:
    """Sets to compare, and how. ``prompts`` (n,) identifies each generation's prompt, ``own`` (n,) the training
    image whose prompt that was; ``size`` is the side in pixels at which every image is read."""

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

    def features(self, items: EvalSet, extractor: Extractor) -> Features:
        """(n, dim), kept in the cache."""
        return extract(items, extractor, self.cache, self.batch_size, self.size)


def pixel_space(run: Run) -> Space:
    """Grey levels (:func:`xgem.metrics.privacy.pixel_distance`)."""
    own = None if run.own is None else _of_own_prompt(run, run.own)
    return _of_images(run, "pixel", "grey levels", privacy.pixel_distance, run.size, own)


def aligned_space(run: Run) -> Space:
    """Grey levels of aligned images (:func:`xgem.metrics.privacy.aligned_distance`)."""
    return _of_images(run, "aligned", "standard deviations", privacy.aligned_distance, privacy.ALIGNED_SIZE)


def latent_space(run: Run, extractor: Extractor) -> Space:
    """Features (:func:`xgem.metrics.privacy.latent_distance`)."""
    generated, training = run.features(run.generated, extractor), run.features(run.training, extractor)
    nearest = partial(privacy.latent_distance, training=training, device=run.device)
    closest = nearest(generated)
    return Space(
        "latent",
        "distance / sqrt(d)",
        closest,
        None if run.own is None else nearest(generated, own_prompt=run.own),
        None if run.held_out is None else nearest(run.features(run.held_out, extractor)),
        _neighbours(closest, lambda rows: nearest(training[rows], exclude=rows)),
        extractor.name,
        extractor.weights,
    )


def same_patient(run: Run, reid: Reid, items: EvalSet, own_prompt: Rows | None = None) -> Closest:
    """The highest re-identification score of each image, and with which training image."""
    features = run.features(items, reid.extractor), run.features(run.training, reid.extractor)
    return privacy.reidentification_score(*features, reid.weight, reid.bias, own_prompt=own_prompt, device=run.device)


def _in_chunks(items: EvalSet, size: int) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """The images in pieces of at most a gigabyte: training images are read again for each."""
    step = max(1, _MOST_BYTES // size**2)
    for start in range(0, len(items), step):
        part = slice(start, min(start + step, len(items)))
        yield part, items.subset(range(part.start, part.stop)).images(size)


def _closest(run: Run, items: EvalSet, measure: Any, size: int, exclude: Rows | None = None) -> Closest:
    values, rows = np.empty(len(items)), np.empty(len(items), dtype=np.int64)
    for part, images in _in_chunks(items, size):
        left_out = None if exclude is None else exclude[part]
        found = measure(images, run.training.batches(size), exclude=left_out, device=run.device)
        values[part], rows[part] = found.values, found.rows
    return Closest(values, rows)


def _of_own_prompt(run: Run, own: Rows) -> Closest:
    values = np.empty(len(own))
    for part, images in _in_chunks(run.generated, run.size):
        there, places = np.unique(own[part], return_inverse=True)
        theirs = run.training.subset(there).images(run.size)
        values[part] = privacy.pixel_distance(images, theirs, own_prompt=places).values
    return Closest(values, own)


def _of_images(run: Run, name: str, unit: str, measure: Any, size: int, own: Closest | None = None) -> Space:
    closest = _closest(run, run.generated, measure, size)
    held_out = None if run.held_out is None else _closest(run, run.held_out, measure, size)
    neighbours = _neighbours(closest, lambda rows: _closest(run, run.training.subset(rows), measure, size, rows))
    return Space(name, unit, closest, own, held_out, neighbours)


def _neighbours(closest: Closest, measure: Callable[[Rows], Closest]) -> Array:
    """(n,) from each closest training image to its own closest other one."""
    rows, places = np.unique(closest.rows, return_inverse=True)
    return measure(rows).values[places]
