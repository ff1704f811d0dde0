"""Spatial annotations of a frontal radiograph: masks by structure, boxes by class, a severity score.

``render`` draws them as one grey image (ChexGen: annotations are formatted as images), each with the grey level in the
model's vocabulary (``xgem.labels.spatial``). Masks are drawn in the order of the vocabulary, so that small structures
are on top of large ones; boxes are drawn over masks, large boxes first; the severity bar is on top.

An annotation on the stored grid of a DICOM image has that image's ``aspect``; without one its pixels count as square.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from xgem.data.transforms import evened, evened_size, pad_square, resize
from xgem.labels.spatial import BACKGROUND, BOX_CLASSES, SEVERITY, STRUCTURES, Vocabulary, in_order, plain_name
from xgem.types import InputError, ShapeError
from xgem.utils.hashing import array_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xgem.configs.components import TransformConfig

    Mask = NDArray[np.bool_]
    Size = tuple[int, int]

__all__ = ["BACKGROUND", "BOX_CLASSES", "MAX_SEVERITY", "STRUCTURES", "Annotation", "Box", "Vocabulary", "render"]

MAX_SEVERITY: Final = 18.0
"""The highest Brixia score."""
OUTSIDE = 1e-3  # how far a box may extend beyond the image's edge, due to rounding
_SAME_ASPECT = 0.01  # by how much aspect ratios of one image at two resolutions may differ, due to rounding


@dataclass(frozen=True)
class Box:
    """A bounding box of a finding; ``x, y`` is its top left corner, in fractions of the image's width and height.

    ``label`` is any class in lower case words; every model has those in ``xgem.labels.spatial.BOX_CLASSES``.

    Raises:
        InputError: the class is not such a name, or the rectangle has no area or extends beyond the image.
    """

    label: str
    x: float
    y: float
    w: float
    h: float

    def __post_init__(self) -> None:
        if not self.label or self.label != plain_name(self.label):
            raise InputError(f"box of class {self.label!r}: expected a name in lower case words, like 'lung opacity'")
        where = f"{self.label} box ({self.x:g}, {self.y:g}, {self.w:g}, {self.h:g})"
        if not all(math.isfinite(number) for number in (self.x, self.y, self.w, self.h)):
            raise InputError(f"{where}: expected finite numbers")
        if self.w <= 0 or self.h <= 0:
            raise InputError(f"{where}: has no area; expected x, y, width and height, the last two above 0")
        if min(self.x, self.y) < -OUTSIDE or max(self.x + self.w, self.y + self.h) > 1 + OUTSIDE:
            raise InputError(
                f"{where}: extends beyond the image; expected fractions of its width and height, from 0 to 1"
            )


@dataclass(frozen=True, eq=False)
class Annotation:
    """The annotation of an image; each part may be missing.

    ``masks`` (h, w) bool by structure, the built-in ones first; ``boxes`` in fractions of the image; ``severity`` is a
    Brixia score from 0 to 18. ``size`` is the image's (h, w): that of the masks, or given with boxes, or None if it is
    unknown. ``annotated`` is the ``size`` before the image was made square. ``aspect``: height of a pixel of its image
    divided by its width (``Radiograph.aspect``), so that it is put through the same steps as the image.

    Raises:
        InputError: a structure that is not a plain name, an empty mask, masks of different sizes, or a severity out of
            range.
    """

    masks: Mapping[str, Mask] = field(default_factory=dict)
    boxes: tuple[Box, ...] = ()
    severity: float | None = None
    size: Size | None = None
    annotated: Size | None = None
    aspect: float = 1.0

    def __post_init__(self) -> None:
        for name, mask in self.masks.items():
            if not name or name != plain_name(name):
                raise InputError(f"mask of structure {name!r}: expected a name in lower case words, like 'left lung'")
            if mask.ndim != 2 or mask.dtype != np.bool_:
                raise ShapeError(f"mask {name!r}: expected (h, w) bool, got {mask.shape} {mask.dtype}")
            if not mask.any():
                raise InputError(f"mask {name!r} is empty: leave out what the image does not show")
            size = self.size or mask.shape
            if mask.shape != size:
                raise InputError(
                    f"mask {name!r} has {_by(mask.shape)} pixels, expected {_by(size)}: "
                    "masks of one image must have the same size"
                )
            object.__setattr__(self, "size", size)
        if self.severity is not None and not 0 <= self.severity <= MAX_SEVERITY:
            raise InputError(f"severity is {self.severity:g}, expected a Brixia score from 0 to {MAX_SEVERITY:g}")
        ordered = {name: self.masks[name] for name in in_order(self.masks, STRUCTURES)}
        object.__setattr__(self, "masks", ordered)

    @property
    def sha256(self) -> str:
        """A hash of the content, independent of the files that it came from."""
        content = {
            "masks": {name: array_hash(mask) for name, mask in self.masks.items()},
            "boxes": sorted((b.label, *(round(float(side), 6) for side in (b.x, b.y, b.w, b.h))) for b in self.boxes),
            "severity": None if self.severity is None else float(self.severity),
            "size": self.size,
        }
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def squared(self, config: TransformConfig) -> Annotation:
        """The annotation on the grid of the image after ``to_square``, ``size`` (s, s).

        Without ``config.pad`` the image was stretched, and the fractions of a box do not change. With it the image was
        resampled to square pixels and padded to a square, and so is the annotation; boxes of an image of unknown size
        count as fractions of a square one. A pixel belongs to a mask if at least half of it is covered; of a mask too
        thin for that, the pixels with the largest coverage remain.
        """
        side = config.size
        annotated = self.annotated or self.size
        boxes = self.boxes
        if config.pad and boxes:
            annotated = annotated or (side, side)
            boxes = tuple(_padded(box, self.size or annotated, self.aspect) for box in boxes)
        masks = {name: _on_grid(mask, config, self.aspect) for name, mask in self.masks.items()}
        return Annotation(masks, boxes, self.severity, (side, side), annotated)

    def united(self, *others: Annotation) -> Annotation:
        """One annotation of all parts.

        Raises:
            InputError: two parts have a mask of the same structure, or a severity, or are of images of different sizes.
                That includes squared boxes of an image of unknown size together with masks of a non-square one.
        """
        # Masks and severity, each given once
        parts = (self, *others)
        masks: dict[str, Mask] = {}
        for part in parts:
            duplicates = masks.keys() & part.masks.keys()
            if duplicates:
                raise InputError(f"duplicate mask {min(duplicates)!r}: give one mask per structure")
            masks.update(part.masks)
        severities = [part.severity for part in parts if part.severity is not None]
        if len(severities) > 1:
            raise InputError(f"duplicate severity ({severities[0]:g} and {severities[1]:g}): give one score")
        boxes = tuple(box for part in parts for box in part.boxes)
        size = _one_size([part.size for part in parts if part.size])
        annotated = _one_size([part.annotated for part in parts if part.annotated])
        # Boxes may state the image's size at another resolution; that of masks is exact
        size = None if masks else size
        return Annotation(masks, boxes, severities[0] if severities else None, size, annotated)


def check_known(annotation: Annotation, vocabulary: Vocabulary) -> None:
    """Refuse an annotation that a model cannot interpret.

    Raises:
        InputError: a structure or class is not in the ``vocabulary``, which the message lists.
    """
    for name in annotation.masks:
        if name not in vocabulary.structures:
            hint = "; a mask of heart and mediastinum is 'cardiomediastinum'" if name == "heart" else ""
            known = ", ".join(vocabulary.structures)
            raise InputError(f"mask of unknown structure {name!r}: this model knows {known}{hint}")
    for box in annotation.boxes:
        if box.label not in vocabulary.box_classes:
            known = ", ".join(vocabulary.box_classes)
            raise InputError(f"box of unknown class {box.label!r}: this model knows {known}")


def render(
    annotation: Annotation, size: int, *, filled: bool = False, vocabulary: Vocabulary | None = None
) -> NDArray[np.float32]:
    """The annotation as an image: (size, size) float32 in [-1, 1].

    Args:
        annotation: on a grid of ``size`` (``Annotation.squared``).
        size: side in pixels.
        filled: draw boxes as areas; otherwise as outlines inside their edges, 2 pixels thick at size 128.
        vocabulary: names and grey levels of the model; the built-in ones by default.

    The severity bar starts with a square of its height, size / 32, in the lower left corner, so that a score of 0 is
    visible; it fills the fraction score / 18 of the remaining width.

    Raises:
        ShapeError: the annotation is on another grid. InputError: it has names that are not in the vocabulary.
    """
    vocabulary = vocabulary or Vocabulary()
    check_known(annotation, vocabulary)
    if annotation.size not in (None, (size, size)):
        raise ShapeError(
            f"annotation of {_by(annotation.size)} pixels, expected {size} x {size}: make it square first (squared)"
        )
    # Masks
    image = np.full((size, size), BACKGROUND, np.float32)
    for name in in_order(annotation.masks, vocabulary.structures):
        image[annotation.masks[name]] = vocabulary.level(name)
    # Boxes, large ones first
    thickness = math.ceil(size / 64)
    for box in sorted(annotation.boxes, key=lambda box: (-box.w * box.h, box.label, box.x, box.y)):
        rows, columns = _pixels(box.y, box.h, size), _pixels(box.x, box.w, size)
        frame = np.ones_like(image[rows, columns], dtype=bool)
        if not filled:
            frame[thickness:-thickness, thickness:-thickness] = False
        image[rows, columns][frame] = vocabulary.level(box.label, box=True)
    # Severity bar
    if annotation.severity is not None:
        height = max(1, size // 32)
        length = height + round((size - height) * annotation.severity / MAX_SEVERITY)
        image[-height:, :length] = vocabulary.level(SEVERITY)
    return image


def _pixels(start: float, length: float, size: int) -> slice:
    """The pixels of a span given in fractions; the one at its middle if it is shorter than a pixel."""
    first, last = round(start * size), round((start + length) * size)
    if first == last:
        first = min(int((start + length / 2) * size), size - 1)
        last = first + 1
    return slice(max(first, 0), last)


def _on_grid(mask: Mask, config: TransformConfig, aspect: float) -> Mask:
    """(h, w) of pixels ``aspect`` times as high as wide -> (size, size)."""
    pixels = mask.astype(np.float32)
    covered = resize(pad_square(evened(pixels, aspect)) if config.pad else pixels, (config.size, config.size), "area")
    return covered >= min(0.5, float(covered.max())) - 1e-6


def _padded(box: Box, size: Size, aspect: float) -> Box:
    """The box in fractions of the square to which ``pad_square`` pads an image of ``size``, its pixels made square."""
    height, width = evened_size(size, aspect)
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return Box(
        box.label,
        (box.x * width + left) / side,
        (box.y * height + top) / side,
        box.w * width / side,
        box.h * height / side,
    )


def _one_size(sizes: list[Size]) -> Size | None:
    """The first of ``sizes``, whose aspect ratios must agree."""
    for height, width in sizes[1:]:
        if abs(height * sizes[0][1] / (width * sizes[0][0]) - 1) > _SAME_ASPECT:
            raise InputError(
                f"annotations of images of {_by(sizes[0])} and {_by((height, width))} pixels, expected one image: "
                "for boxes state its width and height (COCO)"
            )
    return sizes[0] if sizes else None


def _by(size: Any) -> str:
    return " x ".join(str(side) for side in size)
