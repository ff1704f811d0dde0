"""Does a generated image show a thing where it was asked for? Overlap with masks, contrast and response in boxes.

All are (n, n) score matrices with the asked-for annotation j in image i, for
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
    """A rectangle as shares of a square image: ``x``, ``y`` the top left corner, ``w``, ``h`` its size."""

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
    """Dice and IoU of masks found in n images (n, s, s) with each of n asked for (n, s, s): two (n, n).

    Raises:
        InputError: a mask that was asked for is empty.
    """
    first, second = (masks.reshape(len(masks), -1).astype(np.float64) for masks in (found, asked))
    if not second.any(axis=1).all():
        raise InputError("a mask that was asked for is empty: overlap with it means nothing")
    shared = first @ second.T
    total = first.sum(axis=1)[:, None] + second.sum(axis=1)
    return 2 * shared / total, shared / (total - shared)


def region(box: Box, size: int) -> Mask:
    """(size, size): the pixels of a box, at least one."""
    rows, columns = (_span(start, length, size) for start, length in ((box.y, box.h), (box.x, box.w)))
    mask = np.zeros((size, size), dtype=bool)
    mask[rows, columns] = True
    return mask


def _span(start: float, length: float, size: int) -> slice:
    first = min(max(round(start * size), 0), size - 1)
    return slice(first, max(first + 1, round((start + length) * size)))


def ring(box: Box, size: int) -> Mask:
    """What surrounds a box: that of one and a half times its sides, without it."""
    (x, w), (y, h) = _widened(box.x, box.w), _widened(box.y, box.h)
    return region(_Rectangle(x, y, w, h), size) & ~region(box, size)


def _widened(start: float, length: float) -> tuple[float, float]:
    first, last = max(0.0, start - length / 4), min(1.0, start + length * 5 / 4)
    return first, last - first


def mirrored(box: Box, size: int) -> Mask:
    """The box's place on the other side of the image, without the box itself."""
    return region(_Rectangle(1 - box.x - box.w, box.y, box.w, box.h), size) & ~region(box, size)


def contrasts(images: Images, boxes: Sequence[Boxes], surroundings: Callable[[Box, int], Mask]) -> Array:
    """Mean grey (0 to 1) inside a box less that of its surroundings, (n, n); the mean of a study's boxes.

    A column is NaN where no box of the study has surroundings.
    """
    n, size = len(images), images.shape[-1]
    weights = np.full((n, size * size), np.nan)
    for row, own in zip(weights, boxes, strict=True):
        parts = [(region(box, size), surroundings(box, size)) for box in own]
        parts = [inside / inside.sum() - outside / outside.sum() for inside, outside in parts if outside.any()]
        if parts:
            row[:] = np.mean(parts, axis=0).ravel()
    return (images.reshape(n, -1) / 255) @ weights.T


def responses(images: Images, boxes: Sequence[Sequence[tuple[Box, int]]], logits: Callable[[Images], Array]) -> Array:
    """How much of a class's logit a box carries: that of the image less that with the box blurred away, (n, n).

    Occlusion (Zeiler & Fergus 2014) with the image's own blur in the box, not grey, which itself looks like a
    finding. The mean of a study's boxes, each with the column of its class in ``logits``, which is called once a box.
    """
    from torchvision.transforms.functional import gaussian_blur

    size = images.shape[-1]
    whole = logits(images)
    kernel = size // 4 * 2 + 1
    blurred = gaussian_blur(torch.from_numpy(np.array(images)), [kernel, kernel], [size / 12, size / 12]).numpy()
    columns = [
        np.mean([whole[:, k] - logits(np.where(region(box, size), blurred, images))[:, k] for box, k in own], axis=0)
        for own in boxes
    ]
    return np.stack(columns, axis=1)
