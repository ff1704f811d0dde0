"""Does a generated image show a finding where it was requested? Overlap with masks, contrast and response in boxes.

All are (n, n) score matrices of image i with the annotation requested for image j, for
:meth:`xgem.metrics.bootstrap.Bootstrap.matched_and_shuffled`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from xgem.metrics.bootstrap import Array
from xgem.types import InputError

Images = NDArray[np.uint8]
Mask = NDArray[np.bool_]


class Box(Protocol):
    """A rectangle as fractions of a square image: ``x``, ``y`` the top left corner, ``w``, ``h`` its size."""

    @property
    def x(self) -> float: ...
    @property
    def y(self) -> float: ...
    @property
    def w(self) -> float: ...
    @property
    def h(self) -> float: ...


@dataclass(frozen=True)
class _Rectangle:
    x: float
    y: float
    w: float
    h: float


Boxes = Sequence[Box]


def overlaps(found: Mask, asked: Mask) -> tuple[Array, Array]:
    """Dice and IoU of masks segmented in n images (n, s, s) with each of n requested masks (n, s, s): two (n, n).

    Raises:
        InputError: a requested mask is empty.
    """
    segmented, requested = (masks.reshape(len(masks), -1).astype(np.float64) for masks in (found, asked))
    if not requested.any(axis=1).all():
        raise InputError("a requested mask is empty: its overlap is undefined")
    intersection = segmented @ requested.T  # (n, n)
    total = segmented.sum(axis=1)[:, None] + requested.sum(axis=1)
    return 2 * intersection / total, intersection / (total - intersection)


def region(box: Box, size: int) -> Mask:
    """The pixels of a box, at least one: (size, size)."""
    rows, columns = (_span(start, length, size) for start, length in ((box.y, box.h), (box.x, box.w)))
    mask = np.zeros((size, size), dtype=bool)
    mask[rows, columns] = True
    return mask


def _span(start: float, length: float, size: int) -> slice:
    first = min(max(round(start * size), 0), size - 1)
    return slice(first, max(first + 1, round((start + length) * size)))


def ring(box: Box, size: int) -> Mask:
    """The surroundings of a box: a box of one and a half times its sides, without the box itself."""
    (x, w), (y, h) = _widened(box.x, box.w), _widened(box.y, box.h)
    return region(_Rectangle(x, y, w, h), size) & ~region(box, size)


def _widened(start: float, length: float) -> tuple[float, float]:
    first, last = max(0.0, start - length / 4), min(1.0, start + length * 5 / 4)
    return first, last - first


def mirrored(box: Box, size: int) -> Mask:
    """The box's mirror image on the contralateral side, without the box itself."""
    return region(_Rectangle(1 - box.x - box.w, box.y, box.w, box.h), size) & ~region(box, size)


def contrasts(images: Images, boxes: Sequence[Boxes], surroundings: Callable[[Box, int], Mask]) -> Array:
    """Mean grey (0 to 1) inside a box minus that of its surroundings, (n, n); averaged over a study's boxes.

    A column is NaN where no box of the study has surroundings.
    """
    n, size = len(images), images.shape[-1]
    weights = np.full((n, size * size), np.nan)  # of each pixel in the contrast of a study's boxes
    for row, study_boxes in zip(weights, boxes, strict=True):
        regions = [(region(box, size), surroundings(box, size)) for box in study_boxes]
        maps = [inside / inside.sum() - outside / outside.sum() for inside, outside in regions if outside.any()]
        if maps:
            row[:] = np.mean(maps, axis=0).ravel()
    return (images.reshape(n, -1) / 255) @ weights.T


def responses(images: Images, boxes: Sequence[Sequence[tuple[Box, int]]], logits: Callable[[Images], Array]) -> Array:
    """How much of a class's logit comes from a box: the image's logit minus that with the box blurred, (n, n).

    Occlusion (Zeiler & Fergus 2014) with the blurred image in the box instead of grey, which itself looks like a
    finding. Averaged over a study's boxes, each with the column of its class in ``logits``, which is called once per
    box.
    """
    from torchvision.transforms.functional import gaussian_blur

    size = images.shape[-1]
    unoccluded = logits(images)  # (n, classes)
    kernel = size // 4 * 2 + 1
    blurred = gaussian_blur(torch.from_numpy(np.array(images)), [kernel, kernel], [size / 12, size / 12]).numpy()
    columns = [
        np.mean(
            [unoccluded[:, k] - logits(np.where(region(box, size), blurred, images))[:, k] for box, k in study_boxes],
            axis=0,
        )
        for study_boxes in boxes
    ]
    return np.stack(columns, axis=1)
