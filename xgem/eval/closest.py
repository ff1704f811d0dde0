"""How close generated images come to a training set: in pixels, in feature spaces, by re-identification.

All sets are read at one size, that of the generated images: a difference in resolution would make every generated image
seem farther from the training images than held-out images are, and so hide copies.
"""

from __future__ import annotations

import math
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
from xgem.utils.progress import StepBar, track

if TYPE_CHECKING:
    from xgem.judges.reid import Reid

_MOST_BYTES: Final = 1 << 30
_BATCH_BYTES: Final = 1 << 22  # of training images: large enough that products take longer than preparing them


_BLOCK: Final = 1024  # rows of training features


@dataclass(frozen=True)
class Space:
    """Distances to training images in one space.

    From each generated image to the ``closest`` one and, if requested, to that of its ``own`` prompt; from the
    ``held_out`` real images; and from the closest training images to their own ``neighbours``, (n,).
    """

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
    """The sets to compare, and the settings.

    ``prompts`` (n,) identifies each generated image's prompt, ``own`` (n,) the training image that the prompt belongs
    to; ``size`` is the side in pixels at which every image is read.
    """

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
        """A statistic with its interval; with ``seeds`` values are of all generated images, resampled by prompt."""
        groups = self.prompts if seeds else None
        return privacy.estimate(values, statistic, groups=groups, draws=self.draws, seed=self.seed)

    def features(self, items: EvalSet, extractor: Extractor) -> Features:
        """Features (n, dim), cached."""
        return extract(items, extractor, self.cache, self.batch_size, self.size)


def pixel_space(run: Run) -> Space:
    """Distances of grey levels (:func:`xgem.metrics.privacy.pixel_distance`)."""
    own = None if run.own is None else _of_own_prompt(run, run.own)
    return _of_images(run, "pixel", "grey levels", privacy.pixel_distance, run.size, own)


def aligned_space(run: Run) -> Space:
    """Distances of grey levels of aligned images (:func:`xgem.metrics.privacy.aligned_distance`)."""
    return _of_images(run, "aligned", "standard deviations", privacy.aligned_distance, privacy.ALIGNED_SIZE)


def latent_space(run: Run, extractor: Extractor) -> Space:
    """Distances of features (:func:`xgem.metrics.privacy.latent_distance`)."""
    generated, training = run.features(run.generated, extractor), run.features(run.training, extractor)
    nearest = partial(privacy.latent_distance, device=run.device)
    among = partial(_in_blocks, training, f"{extractor.name} distances")
    closest = nearest(generated, among())
    return Space(
        "latent",
        "distance / sqrt(d)",
        closest,
        None if run.own is None else nearest(generated, training, own_prompt=run.own),
        None if run.held_out is None else nearest(run.features(run.held_out, extractor), among()),
        _neighbours(closest, lambda rows: nearest(training[rows], among(), exclude=rows)),
        extractor.name,
        extractor.weights,
    )


def same_patient(run: Run, reid: Reid, items: EvalSet, own_prompt: Rows | None = None) -> Closest:
    """The highest re-identification score of each image with a training image, and the row of that image."""
    features, training = run.features(items, reid.extractor), run.features(run.training, reid.extractor)
    known = _in_blocks(training, "re-identification scores") if own_prompt is None else training
    return privacy.reidentification_score(
        features, known, reid.weight, reid.bias, power=reid.power, own_prompt=own_prompt, device=run.device
    )


def _in_blocks(features: Features, description: str) -> Iterator[Features]:
    """The rows of training features in blocks, whose comparison is one step of progress."""
    return track([features[row : row + _BLOCK] for row in range(0, len(features), _BLOCK)], description)


def _chunk(size: int) -> int:
    return max(1, _MOST_BYTES // size**2)


def _in_chunks(items: EvalSet, size: int) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """The images in chunks of at most a gigabyte; training images are read again for each chunk."""
    step = _chunk(size)
    for start in range(0, len(items), step):
        part = slice(start, min(start + step, len(items)))
        yield part, items.subset(range(part.start, part.stop)).images(size)


def _closest(run: Run, items: EvalSet, name: str, measure: Any, size: int, exclude: Rows | None = None) -> Closest:
    """The closest training image of each item, by a distance of images."""
    values, rows = np.empty(len(items)), np.empty(len(items), dtype=np.int64)
    chunks = math.ceil(len(items) / _chunk(size))
    with StepBar(f"{name} distances of {items.name}", chunks * len(run.training)) as bar:

        def known() -> Iterator[NDArray[np.uint8]]:
            for batch in run.training.batches(size, max(1, _BATCH_BYTES // size**2)):
                yield batch
                bar.advance(len(batch))

        for part, images in _in_chunks(items, size):
            excluded = None if exclude is None else exclude[part]
            closest = measure(images, known(), exclude=excluded, device=run.device)
            values[part], rows[part] = closest.values, closest.rows
    return Closest(values, rows)


def _of_own_prompt(run: Run, own: Rows) -> Closest:
    """The pixel distance of each generated image to the training image of its own prompt."""
    values = np.empty(len(own))
    for part, images in _in_chunks(run.generated, run.size):
        rows, places = np.unique(own[part], return_inverse=True)
        targets = run.training.subset(rows).images(run.size)
        values[part] = privacy.pixel_distance(images, targets, own_prompt=places).values
    return Closest(values, own)


def _of_images(run: Run, name: str, unit: str, measure: Any, size: int, own: Closest | None = None) -> Space:
    closest = _closest(run, run.generated, name, measure, size)
    held_out = None if run.held_out is None else _closest(run, run.held_out, name, measure, size)
    neighbours = _neighbours(closest, lambda rows: _closest(run, run.training.subset(rows), name, measure, size, rows))
    return Space(name, unit, closest, own, held_out, neighbours)


def _neighbours(closest: Closest, measure: Callable[[Rows], Closest]) -> Array:
    """(n,) distances from each closest training image to its own nearest neighbour."""
    rows, places = np.unique(closest.rows, return_inverse=True)
    return measure(rows).values[places]
