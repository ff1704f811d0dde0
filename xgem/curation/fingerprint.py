"""The fingerprint of a radiograph by which copies of it are found: a perceptual hash of real numbers.

The image without its constant border is brought to 64 x 64 pixels whose grey levels are replaced by their ranks, so
that brightness, contrast and gamma change nothing, and a negative is the fingerprint's negative. Of its discrete cosine
transform the lowest 20 x 20 coefficients are projected on 64 directions which keep what differs between radiographs and
drop what changes when one is cropped, compressed, resized or brightened (Fisher's linear discriminant; the directions
ship with xgem, ``benchmarks/curation.py fingerprint`` fits them). Euclidean distances are then in standard deviations
of such changes. Chest radiographs are too alike for the usual 64 bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from xgem.checkpoints.locate import ASSETS
from xgem.data.transforms import resize
from xgem.types import CheckpointError
from xgem.utils.files import one_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

SHIPPED: Final = ASSETS / "judges" / "fingerprint" / "model.safetensors"
SIDE: Final = 64
FREQUENCIES: Final = 20
DIM: Final = 64
ORIENTATIONS: Final = 16
"""Turned by 0 to 3 quarters, mirrored or not, negative or not."""
_BORDER: Final = 0.04
_RANKS: Final = 1024


def trimmed(pixels: Floats) -> Floats:
    """(h, w) in [0, 1] without constant rows and columns at its edges, unless hardly anything else is left."""
    rows = np.flatnonzero(np.ptp(pixels, axis=1) > _BORDER)
    columns = np.flatnonzero(np.ptp(pixels, axis=0) > _BORDER)
    if len(rows) < pixels.shape[0] // 2 or len(columns) < pixels.shape[1] // 2:
        return pixels
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def thumbnail(pixels: Floats) -> NDArray[np.int8]:
    """(h, w) in [0, 1] -> (64, 64): the ranks of its grey levels from -127 to 127, equal ones at their mean."""
    small = resize(np.ascontiguousarray(trimmed(pixels)), (SIDE, SIDE), "area")
    levels = np.rint(small.ravel() * _RANKS).astype(np.int64)
    counts = np.bincount(levels, minlength=_RANKS + 1)
    middle = np.cumsum(counts) - counts / 2
    return np.rint((2 * middle[levels] / levels.size - 1) * 127).astype(np.int8).reshape(SIDE, SIDE)


def oriented(thumbnails: NDArray[Any], number: int) -> NDArray[Any]:
    """(n, 64, 64) in orientation ``number`` of :data:`ORIENTATIONS`: ``number % 4`` quarters, then mirrored (4), then
    negative (8); 0 leaves them as they are."""
    turned = np.rot90(thumbnails, number % 4, axes=(1, 2))
    turned = turned[:, :, ::-1] if number & 4 else turned
    return -turned if number & 8 else turned


def said(number: int) -> str:
    """An orientation in words, empty for none: ``"rotated by 90 degrees, negative"``."""
    parts = [f"rotated by {number % 4 * 90} degrees"] if number % 4 else []
    return ", ".join([*parts, *(["mirrored"] if number & 4 else []), *(["negative"] if number & 8 else [])])


@cache
def cosines() -> Floats:
    """(20, 64): the lowest basis functions of the discrete cosine transform (type II, orthonormal)."""
    places = np.arange(SIDE) + 0.5
    basis = np.sqrt(2 / SIDE) * np.cos(np.pi * np.arange(FREQUENCIES)[:, None] * places / SIDE)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


def spectrum(thumbnails: NDArray[Any]) -> Floats:
    """(n, 64, 64) of ranks -> (n, 399): coefficients without the mean."""
    basis = cosines()
    found = basis @ (thumbnails.astype(np.float32) / np.float32(127)) @ basis.T
    return found.reshape(len(thumbnails), -1)[:, 1:].astype(np.float32)


@dataclass(frozen=True)
class Projection:
    """The directions (64, 399) and the mean (399,) of :func:`spectrum`."""

    directions: Floats
    mean: Floats

    @classmethod
    def load(cls, file: Path = SHIPPED) -> Projection:
        """Those that ship with xgem; CheckpointError if the file does not hold them."""
        try:
            state = load_file(file)
            found = cls(state["directions"].astype(np.float32), state["mean"].astype(np.float32))
        except (KeyError, OSError, SafetensorError) as error:
            raise CheckpointError(f"{file}: not a projection of fingerprints ({one_line(error)})") from None
        if found.directions.shape != (DIM, FREQUENCIES**2 - 1) or found.mean.shape != (FREQUENCIES**2 - 1,):
            raise CheckpointError(
                f"{file}: directions {found.directions.shape}; fit them again (benchmarks/curation.py)"
            )
        return found

    def __call__(self, thumbnails: NDArray[Any]) -> Floats:
        """(n, 64, 64) of ranks -> (n, 64): fingerprints."""
        return ((spectrum(thumbnails) - self.mean) @ self.directions.T).astype(np.float32)
