"""Arrays of stored pixels as grey values in [0, 1]."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from xgem.configs.base import Rescale
from xgem.types import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


SMALL_PART: Final = 0.25
"""An image whose values span less than this share of their range is warned of."""
_WHITE: Final = 99.5  # with 99 or 99.9, fewer of NIH's images have grey levels like those of Open-i
_NEGATIVE: Final = 0.15  # over it: 0 of 800 images of Open-i, 0.7 % of 600 of NIH, and 91 % of their negatives


# JPEG's chroma noise on a grey image stays far below these; a small coloured marker is tolerated.
_COLOUR_SPREAD, _COLOUR_SHARE, _COLOUR_MEAN = 24 / 255, 0.01, 6 / 255


@dataclass
class Reading:
    """One image while it is read: its ``name`` in messages, how its values are scaled, and what was found.

    ``notes`` are warnings for the user; ``used`` is the share of the stated range between the lowest and the highest
    value.
    """

    name: str
    rescale: Rescale = "auto"
    notes: list[str] = field(default_factory=list[str])
    used: float = 1.0


@dataclass(frozen=True)
class Decoded:
    """A decoded file: ``pixels`` (h, w) float32 in [0, 1], (row, column) ``spacing`` in mm if stated, ``aspect`` as in
    ``Radiograph``, and which pixels lie ``inside`` the detector's image (h, w), if some do not.
    """

    pixels: Floats
    spacing: tuple[float, float] | None = None
    aspect: float = 1.0
    inside: NDArray[np.bool_] | None = None


def value_range(reading: Reading, found: tuple[int, int], low: int, high: int, *, stated: bool) -> tuple[int, int]:
    """The values that become 0 and 1.

    Args:
        found: the lowest and the highest stored value.
        low, high: the range of the bit depth.
        stated: the file states the depth apart from the size of its cells (BitsStored, sBIT).

    Returns:
        ``low`` and ``high``; but with ``rescale="auto"``, and a depth over 8 bits that is not stated, the range of the
        smallest depth that holds the values, if they span less than a quarter of it. Both cases add a note.
    """
    least, most = found
    reading.used = (most - least) / (high - low)
    if reading.used >= SMALL_PART or reading.rescale == "minmax":
        return low, high
    signed = least < 0
    bits = max(8, most.bit_length() + signed, (-least - 1).bit_length() + 1 if signed else 0)
    cell = (high - low).bit_length()
    part = f"values {least} to {most} are {100 * reading.used:.2g} % of the range of {cell} bits"
    if reading.rescale == "header" or stated or bits >= cell:
        reading.notes.append(f"{part}: a dark or flat image; rescale='minmax' stretches it")
        return low, high
    reading.notes.append(f"{part}; read as {bits} bits (rescale='header' reads {cell}, 'minmax' stretches the values)")
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)


def stretched(pixels: Floats, inside: NDArray[np.bool_] | None = None) -> Floats:
    """Pixels (h, w) with their lowest value (``inside``) at 0 and the highest at 1; constant ones unchanged."""
    counted = pixels if inside is None else pixels[inside]
    low, high = float(counted.min()), float(counted.max())
    return np.clip((pixels - low) / (high - low), 0, 1).astype(np.float32) if high > low else pixels


def brightened(pixels: Floats, inside: NDArray[np.bool_] | None = None) -> Floats:
    """Pixels (h, w) in [0, 1] times what brings their 99.5th percentile (``inside``) to 1, cut there."""
    white = float(np.percentile(pixels if inside is None else pixels[inside], _WHITE))
    return np.clip(pixels / white, 0, 1).astype(np.float32) if white > 0 else pixels


def looks_negative(pixels: Floats) -> bool:
    """Whether the upper corners, which show air, are clearly brighter than the whole image (h, w)."""
    height, width = (max(1, side // 8) for side in pixels.shape)
    corners = (float(pixels[:height, :width].mean()) + float(pixels[:height, -width:].mean())) / 2
    return corners - float(pixels.mean()) > _NEGATIVE * float(np.ptp(pixels))


def by_depth(
    stored: NDArray[Any], bits: int, reading: Reading, *, reverse: bool, low: int = 0, stated: bool = False
) -> Floats:
    """(h, w) float32 in [0, 1] of stored values from ``low`` upwards, ``bits`` deep; ``reverse``: white is zero."""
    top = low + 2**bits - 1
    least, most = (int(stored.min()), int(stored.max())) if stored.size else (low, low)
    if most > top or least < low:
        value = most if most > top else least
        raise ImageError(
            f"{reading.name}: value {value:g} is over the {bits} bits that the file states; export it again"
        )
    bottom, top = value_range(reading, (least, most), low, top, stated=stated)
    pixels = ((stored - bottom if bottom else stored) / float(top - bottom)).astype(np.float32)
    return 1 - pixels if reverse else pixels


def scale_array(array: NDArray[Any], reading: Reading) -> Floats:
    """(h, w) float32 in [0, 1] of an array by its dtype's range; one grey channel of three equal ones."""
    name = reading.name
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim == 3 and array.shape[0] == 3 and array.shape[-1] != 3:
        array = np.moveaxis(array, 0, -1)
    if array.ndim != 2 and not (array.ndim == 3 and array.shape[-1] == 3):
        raise ImageError(f"{name}: shape {array.shape}; expected (h, w), (1, h, w) or three equal channels")
    if not array.size:
        raise ImageError(f"{name}: shape {array.shape} holds no pixels")
    if array.dtype in (np.uint8, np.uint16):
        values = by_depth(array.astype(np.float32), array.dtype.itemsize * 8, reading, reverse=False)
    elif array.dtype.kind == "f":
        # Checked before narrowing, so that a large double is "out of range" and not "infinite".
        if not np.isfinite(array).all():
            raise ImageError(f"{name}: holds NaN or infinite values; clean the array first")
        low, high = float(array.min()), float(array.max())
        if low < -1e-6 or high > 1 + 1e-6:
            raise ImageError(f"{name}: values in [{low:g}, {high:g}]; floats must lie in [0, 1], scale them first")
        values = np.clip(array.astype(np.float32), 0, 1)
        reading.used = high - low
        if reading.used < SMALL_PART and reading.rescale != "minmax":
            reading.notes.append(
                f"values {low:.3g} to {high:.3g} of a range from 0 to 1: a dark or flat image; "
                "rescale='minmax' stretches it"
            )
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
