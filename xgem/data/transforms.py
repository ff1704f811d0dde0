"""Preprocessing of radiographs (XGeM, section 3.1); the preset can switch off every step.

Reading (``xgem.data.read``) applies the VOI transform, inverts MONOCHROME1 and divides by the maximum of the bit depth.
The steps here are resampling to one pixel spacing if the header states another (and to square pixels if they are not),
zero-padding to a square, and resizing.
No step mirrors an image: the heart is on the patient's left.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xgem.configs.reading import AS_STATED, ReadOptions
from xgem.data.read import Radiograph, read_image
from xgem.types import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xgem.configs.components import TransformConfig
    from xgem.data.read import Source

    Floats = NDArray[np.float32]

logger = logging.getLogger(__name__)
_NUMBERS = re.compile(r"[-+]?\d[\d.e+-]*")


@dataclass(frozen=True)
class SquashedFile(os.PathLike[str]):
    """A path for whatever takes one, of an image file that lost the shape of its pixels.

    ``pixel_aspect``: height of a pixel divided by its width; :func:`read_with` reads the file with it.
    """

    path: str
    pixel_aspect: float

    def __fspath__(self) -> str:
        return self.path


class Notes:
    """What was noted while images were read (``Radiograph.notes``), to be logged in a line per kind."""

    def __init__(self) -> None:
        self.images = 0
        self._kinds: dict[str, list[tuple[str, str]]] = {}
        self._lock = threading.Lock()

    def add(self, notes: Sequence[str], source: Any) -> None:
        """Count an image with its notes, which are of one kind if they differ in numbers only; any thread may."""
        name = str(source) if isinstance(source, str | os.PathLike) else "array"
        with self._lock:
            self.images += 1
            for note in notes:
                self._kinds.setdefault(_NUMBERS.sub("#", note), []).append((name, note))

    def log(self, what: str = "") -> None:
        """Warn of each kind: how many images, the first file by name, and its note; of one image, its name alone."""
        for found in self._kinds.values():
            name, note = min(found)
            if self.images == 1:
                logger.warning("%s: %s", name, note)
            else:
                prefix = f"{what}: " if what else ""
                logger.warning("%s%d of %d images, first %s: %s", prefix, len(found), self.images, name, note)


# Larger results are due to wrong values in the header and would exhaust the memory
MAX_SIDE = 16_384
_SAME_SCALE = 0.01


def read_square(
    source: Source, config: TransformConfig, reading: ReadOptions = AS_STATED, *, noted: Notes | None = None
) -> Floats:
    """Read an image as :func:`read_with` and make it square: (size, size) in [-1, 1].

    What was found is logged, or added to ``noted``, which says it once for many images.
    """
    radiograph = read_with(source, config, reading)
    own = Notes() if noted is None else noted
    own.add(radiograph.notes, source)
    if noted is None:
        own.log()
    return to_square(radiograph, config)


def read_with(
    source: Source,
    config: TransformConfig | None = None,
    reading: ReadOptions = AS_STATED,
    *,
    view: str | None = None,
) -> Radiograph:
    """:func:`read_image` with the settings of ``reading``, and for what it leaves open those of ``config``, if any.

    A ``pixel_aspect`` of ``reading``, or of a :class:`SquashedFile`, is that of an image whose file states neither
    spacing nor aspect; a stated one counts.
    """
    aspect = source.pixel_aspect if isinstance(source, SquashedFile) else reading.pixel_aspect
    radiograph = _read(source, config, reading, view)
    if aspect is None or radiograph.spacing is not None or radiograph.aspect != 1:
        return radiograph
    return replace(radiograph, aspect=aspect)


def read_grey(file: Source, reading: ReadOptions = AS_STATED) -> NDArray[np.uint8]:
    """An image as people see it: (h, w) grey levels 0 to 255 of square pixels; errors as :func:`read_image`."""
    image = read_with(file, reading=reading)
    return np.rint(evened(image.pixels, image.aspect, name=image.origin) * 255).astype(np.uint8)


def _read(source: Source, config: TransformConfig | None, reading: ReadOptions, view: str | None) -> Radiograph:
    if config is None:
        return read_image(source, view=view, **reading.of_study.model_dump())
    config = reading.on(config)
    return read_image(
        source,
        voi=config.voi,
        allow_any=bool(reading.allow_any),
        invert_monochrome1=config.invert_monochrome1,
        view=view,
        rescale=config.rescale,
        invert=config.invert,
    )


def to_square(radiograph: Radiograph, config: TransformConfig) -> Floats:
    """Preprocess an image as read: (size, size) float32 in [-1, 1], black is -1.

    Steps (XGeM, 3.1): resample to ``config.pixel_spacing`` mm if the file states another spacing, or to square pixels
    of the shorter side if only their aspect ratio is known or wanted; pad with zeros to a centred square (without
    ``config.pad`` the image is stretched instead); antialiased resize to ``config.size``.

    Raises:
        ImageError: the stated spacing would give an image with a side of more than 16384 pixels.
    """
    pixels = radiograph.pixels
    if config.pixel_spacing is not None and radiograph.spacing is not None:
        pixels = resample(pixels, radiograph.spacing, config.pixel_spacing, config.interpolation, radiograph.origin)
    elif config.pad:
        pixels = evened(pixels, radiograph.aspect, config.interpolation, radiograph.origin)
    if config.pad:
        pixels = pad_square(pixels)
    pixels = resize(pixels, (config.size, config.size), config.interpolation)
    return np.clip(pixels * np.float32(2) - np.float32(1), -1, 1)


def grid_spacing(radiograph: Radiograph, config: TransformConfig) -> tuple[float, float] | None:
    """Row and column spacing in mm of what :func:`to_square` makes of an image; None if its file states no spacing.

    Steps round to whole pixels, so that the spacing follows from the sizes before and after each, not from the
    spacing that was aimed at.
    """
    if radiograph.spacing is None:
        return None
    height, width = radiograph.pixels.shape
    extent = height * radiograph.spacing[0], width * radiograph.spacing[1]  # mm
    if config.pixel_spacing is not None:
        height, width = resampled_size((height, width), radiograph.spacing, config.pixel_spacing)
    elif config.pad:
        height, width = evened_size((height, width), radiograph.aspect)
    sides = (max(height, width),) * 2 if config.pad else (height, width)
    row, column = (
        mm / pixels * side / config.size for mm, pixels, side in zip(extent, (height, width), sides, strict=True)
    )
    return row, column


def grey_levels(square: Floats) -> NDArray[np.uint8]:
    """An image in [-1, 1], as :func:`to_square` makes it, in grey levels 0 to 255."""
    return np.rint((square + 1) * 127.5).astype(np.uint8)


def evened(pixels: Floats, aspect: float, interpolation: str = "area", name: str = "image") -> Floats:
    """(h, w) of pixels ``aspect`` times as high as wide, resampled to square ones of the shorter side."""
    sides = (aspect, 1.0)
    return resample(pixels, sides, min(sides), interpolation, name)


def evened_size(size: tuple[int, int], aspect: float) -> tuple[int, int]:
    """Height and width of an image of ``size`` after :func:`evened`."""
    return resampled_size(size, (aspect, 1.0), min(aspect, 1.0))


def resampled_size(size: tuple[int, int], spacing: tuple[float, float], target: float) -> tuple[int, int]:
    """Height and width of an image of ``size`` after :func:`resample`."""
    scales = [side / target for side in spacing]
    if all(abs(scale - 1) <= _SAME_SCALE for scale in scales):
        return size
    return max(1, round(size[0] * scales[0])), max(1, round(size[1] * scales[1]))


def resample(
    pixels: Floats, spacing: tuple[float, float], target: float, interpolation: str, name: str = "image"
) -> Floats:
    """(h, w) at ``spacing`` (row, column) mm resampled to square pixels of ``target`` mm; unchanged within 1 %."""
    height, width = resampled_size((pixels.shape[0], pixels.shape[1]), spacing, target)
    if (height, width) == pixels.shape:
        return pixels
    if max(height, width) > MAX_SIDE:
        raise ImageError(
            f"{name}: spacing {spacing[0]:g} x {spacing[1]:g} mm gives {height} x {width} pixels of {target:g} mm; "
            "correct the header or set pixel_spacing to null"
        )
    return resize(pixels, (height, width), interpolation)


def pad_square(pixels: Floats) -> Floats:
    """(h, w) zero-padded to a square of its longer side, with the image in the centre."""
    height, width = pixels.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return np.pad(pixels, ((top, side - height - top), (left, side - width - left)))


def resize(pixels: Floats, size: tuple[int, int], interpolation: str) -> Floats:
    """Antialiased resize of (h, w) float32 in [0, 1] to ``size`` (height, width); bicubic overshoot is clipped."""
    from PIL import Image

    if pixels.shape == size:
        return pixels
    filters: dict[str, Any] = {
        "bicubic": Image.Resampling.BICUBIC,
        "bilinear": Image.Resampling.BILINEAR,
        "area": Image.Resampling.BOX,
    }
    image = Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    resized = np.asarray(image.resize((size[1], size[0]), filters[interpolation]), dtype=np.float32)
    return np.clip(resized, 0, 1)
