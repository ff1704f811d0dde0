"""Preprocessing of radiographs (XGeM, section 3.1); the preset can switch off every step.

Reading (``xgem.data.read``) applies the VOI transform, inverts MONOCHROME1 and divides by the maximum of the bit depth.
The steps here are resampling to one pixel spacing if the header states another (and to square pixels if they are not),
zero-padding to a square, and resizing.
No step mirrors an image: the heart is on the patient's left.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np

from xgem.data.read import Radiograph, read_image
from xgem.types import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xgem.configs.components import TransformConfig
    from xgem.data.read import Source

    Floats = NDArray[np.float32]

logger = logging.getLogger(__name__)

# Larger results are due to wrong values in the header and would exhaust the memory
MAX_SIDE = 16_384


def read_square(source: Source, config: TransformConfig, *, allow_any: bool = False) -> Floats:
    """Read an image with the config's settings and make it square: (size, size) in [-1, 1]. Its notes are logged."""
    radiograph = read_with(source, config, allow_any=allow_any)
    for note in radiograph.notes:
        logger.warning("%s: %s", radiograph.origin, note)
    return to_square(radiograph, config)


def read_with(
    source: Source, config: TransformConfig, *, allow_any: bool = False, view: str | None = None
) -> Radiograph:
    """:func:`read_image` with the config's VOI, MONOCHROME1, rescale and invert settings."""
    return read_image(
        source,
        voi=config.voi,
        allow_any=allow_any,
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
        sides = (radiograph.aspect, 1.0)
        pixels = resample(pixels, sides, min(sides), config.interpolation, radiograph.origin)
    if config.pad:
        pixels = pad_square(pixels)
    pixels = resize(pixels, (config.size, config.size), config.interpolation)
    return np.clip(pixels * np.float32(2) - np.float32(1), -1, 1)


def resample(
    pixels: Floats, spacing: tuple[float, float], target: float, interpolation: str, name: str = "image"
) -> Floats:
    """(h, w) at ``spacing`` (row, column) mm resampled to square pixels of ``target`` mm; unchanged within 1 %."""
    scales = [side / target for side in spacing]
    if all(abs(scale - 1) <= 0.01 for scale in scales):
        return pixels
    height, width = (max(1, round(length * scale)) for length, scale in zip(pixels.shape, scales, strict=True))
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
