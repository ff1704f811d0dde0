"""Is an image malformed: is it unlike all real ones? Distances to real training images, in two spaces.

Features of a network say whether there is a chest at all, with structures as sharp as real ones; they hardly react to
contrast. Grey levels and their gradients do: haze, washed-out and burnt-out images lie far from all real ones there.
The distance is that to the fifth nearest real image; the threshold keeps a given share of held-out real images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from xgem.data.sets import Images
from xgem.metrics.bootstrap import Array
from xgem.types import InputError

KEPT: Final = 0.99
"""Share of held-out real images that are within the threshold."""
NEIGHBOUR: Final = 5
QUANTILES: Final = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
FEWEST: Final = 50
"""Held-out real images that a threshold needs: the quantile of fewer says little."""
_FLAT: Final = 1e-4


def grey_statistics(images: Images) -> Array:
    """(n, h, w) uint8 -> (n, 9): quantiles of grey levels in [0, 1], logarithms of mean gradients down and across.

    Gradients depend on the resolution: compare images of one size.
    """
    rows = []
    for image in images:  # one at a time, as floats take eight times the memory
        grey = image.astype(np.float32) / 255
        gradients = [np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1)]
        rows.append([*np.quantile(grey, QUANTILES), *np.log(np.add(gradients, _FLAT))])
    return np.array(rows, dtype=np.float64).reshape(len(images), len(QUANTILES) + 2)


@dataclass(frozen=True)
class Neighbourhood:
    """Distances to real images in one space.

    Attributes:
        real: (m, d) vectors of real training images, scaled.
        scale: (d,) by which vectors are divided.
        threshold: distance within which :data:`KEPT` of the held-out real images lie.
    """

    real: Array
    scale: Array
    threshold: float = float("nan")

    @classmethod
    def fitted(cls, real: NDArray[np.floating], held_out: NDArray[np.floating], *, scaled: bool) -> Neighbourhood:
        """From vectors (m, d) of training and (n, d) of held-out images; ``scaled`` divides by their deviations.

        Raises:
            InputError: fewer than 50 held-out images, or fewer training images than neighbours.
        """
        if len(real) < NEIGHBOUR or len(held_out) < FEWEST:
            raise InputError(
                f"{len(real)} training and {len(held_out)} held-out real images: expected at least {NEIGHBOUR} "
                f"and {FEWEST}"
            )
        real = np.asarray(real, dtype=np.float64)
        spread = real.std(axis=0)
        scale = np.where(spread > 0, spread, 1.0) if scaled else np.ones(real.shape[1])
        found = cls(real / scale, scale)
        return cls(found.real, scale, float(np.quantile(found.distances(held_out), KEPT)))

    def distances(self, vectors: NDArray[np.floating]) -> Array:
        """(n, d) -> (n,): Euclidean distance to the fifth nearest real training image."""
        from sklearn.neighbors import NearestNeighbors

        search = NearestNeighbors(n_neighbors=NEIGHBOUR).fit(self.real)
        return search.kneighbors(np.asarray(vectors, dtype=np.float64) / self.scale)[0][:, -1]

    def beyond(self, vectors: NDArray[np.floating]) -> NDArray[np.bool_]:
        """(n, d) -> (n,): whether an image is farther than the threshold."""
        return self.distances(vectors) > self.threshold


def beyond_any(
    spaces: Mapping[str, Neighbourhood], vectors: Mapping[str, NDArray[np.floating]]
) -> dict[str, NDArray[np.bool_]]:
    """(n,) by space whether images are beyond its threshold, and as ``any`` whether they are in at least one."""
    found = {name: space.beyond(vectors[name]) for name, space in spaces.items()}
    return {**found, "any": np.logical_or.reduce(list(found.values()))}
