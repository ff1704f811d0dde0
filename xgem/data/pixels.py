"""Arrays of stored pixels as grey values in [0, 1]."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from xgem.types import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


Voi = Literal["none", "window", "lut"]


# JPEG's chroma noise on a grey image stays far below these; a small coloured marker is tolerated.
_COLOUR_SPREAD, _COLOUR_SHARE, _COLOUR_MEAN = 24 / 255, 0.01, 6 / 255


def _by_depth(stored: NDArray[Any], bits: int, name: str, *, reverse: bool) -> Floats:
    top = float(2**bits - 1)
    if float(stored.max(initial=0)) > top:
        raise ImageError(
            f"{name}: value {stored.max():g} is over the {bits} bits that the file states; export it again"
        )
    pixels = (stored / top).astype(np.float32)
    return 1 - pixels if reverse else pixels


def scale_array(array: NDArray[Any], name: str) -> Floats:
    """(h, w) float32 in [0, 1] of an array by its dtype's range; one grey channel of three equal ones."""
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[-1] != 3:
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] == 3):
        raise ImageError(f"{name}: shape {array.shape}; expected (h, w), (1, h, w) or three equal channels")
    if not array.size:
        raise ImageError(f"{name}: shape {array.shape} holds no pixels")
    if array.dtype == np.uint8:
        values = array.astype(np.float32) / np.float32(255)
    elif array.dtype == np.uint16:
        values = array.astype(np.float32) / np.float32(65535)
    elif array.dtype.kind == "f":
        # Checked before narrowing, so that a large double is "out of range" and not "infinite".
        if not np.isfinite(array).all():
            raise ImageError(f"{name}: holds NaN or infinite values; clean the array first")
        low, high = float(array.min()), float(array.max())
        if low < -1e-6 or high > 1 + 1e-6:
            raise ImageError(f"{name}: values in [{low:g}, {high:g}]; floats must lie in [0, 1], scale them first")
        values = np.clip(array.astype(np.float32), 0, 1)
    else:
        raise ImageError(f"{name}: type {array.dtype} has no stated range; give uint8, uint16 or float in [0, 1]")
    return grey(values, name) if values.ndim == 3 else values


def grey(values: Floats, name: str) -> Floats:
    """The grey channel of (h, w, 3) in [0, 1] whose channels agree; their mean, so that rounding evens out.

    Raises:
        ImageError: the channels truly differ: a colour photograph.
    """
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]  # reductions over an axis of 3 are slow
    spread = np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue)
    if not spread.any():
        return np.ascontiguousarray(red)
    if float((spread > _COLOUR_SPREAD).mean()) > _COLOUR_SHARE or float(spread.mean()) > _COLOUR_MEAN:
        raise ImageError(f"{name}: a colour image; expected a radiograph: convert it to grey if it is one")
    return (red + green + blue) / np.float32(3)
