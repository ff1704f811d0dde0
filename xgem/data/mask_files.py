"""Mask images as they are stored: their values are labels, so nothing is scaled or repaired."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from xgem.data.read import file_bytes, sniff
from xgem.labels.spatial import plain_name
from xgem.types import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Mask = NDArray[np.bool_]

LABELS_KEY: Final = "Structures"
"""Key of the PNG text that declares the image's values to be labels and names them."""
_MASK_FILES: Final = "a mask as PNG, TIFF, BMP or .npy"
_PHOTOMETRIC: Final = 262  # TIFF's PhotometricInterpretation


def stored_mask(source: Any) -> tuple[NDArray[Any], str, dict[int, str] | None]:
    """A mask image's values (h, w) as stored, its file or "mask", and the labels that it names, if any.

    The image is upright (EXIF), like the radiograph. Values that mean colours (a palette with white first, TIFF with
    white as zero) are turned around, so that 0 is black.

    Raises:
        InputError: not a readable image, several frames, in colour, JPEG, or values that are not numbers.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(source, str | os.PathLike):
        origin = os.fspath(source)
        data = file_bytes(Path(origin), _MASK_FILES)
        if sniff(data) == "npy":
            try:
                array = np.load(io.BytesIO(data), allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise InputError(f"{origin}: not a usable .npy file ({brief(error)}); save it again") from error
            return _plane(array, origin), origin, None
        try:
            with Image.open(io.BytesIO(data), formats=("PNG", "TIFF", "BMP", "PPM", "JPEG", "WEBP")) as image:
                return _of_image(image, origin), origin, _labels_of(image, origin)
        except InputError:
            raise
        except UnidentifiedImageError:
            raise InputError(f"{origin}: not an image; expected {_MASK_FILES}") from None
        # What decoders raise for damaged files
        except (OSError, SyntaxError, ValueError, EOFError, TypeError, Image.DecompressionBombError) as error:
            raise InputError(f"{origin}: not a readable mask ({brief(error)}); expected PNG or .npy") from error
    if isinstance(source, Image.Image):
        try:
            return _of_image(source, "mask"), "mask", _labels_of(source, "mask")
        except OSError as error:  # a lazily opened file turns out to be damaged
            raise InputError(f"mask: damaged image ({brief(error)}); get the file again") from error
    if hasattr(source, "detach"):
        source = source.detach().cpu().numpy()
    if not isinstance(source, np.ndarray):
        raise InputError(
            f"cannot read a {type(source).__name__} as a mask; expected a path, PIL image, array, tensor, or a mapping "
            "from structure to these"
        )
    return _plane(source, "mask"), "mask", None


def _labels_of(image: Any, origin: str) -> dict[int, str] | None:
    """The labels named in a PNG by ``write_labels``: ``"1 left lung, 2 right lung"``."""
    text = image.info.get(LABELS_KEY)
    if text is None:
        return None
    numbers: dict[int, str] = {}
    for entry in str(text).split(", "):
        number, _, name = entry.partition(" ")
        if not number.isdecimal() or name != plain_name(name) or not name:
            raise InputError(f"{origin}: its text {LABELS_KEY!r} is {str(text)[:60]!r}, expected '1 left lung, ...'")
        numbers[int(number)] = name
    return numbers


def _of_image(image: Any, origin: str) -> NDArray[Any]:
    from PIL import ImageOps

    if getattr(image, "n_frames", 1) > 1:
        raise InputError(f"{origin}: has {image.n_frames} frames; expected one image")
    if image.format in ("JPEG", "WEBP"):
        raise InputError(f"{origin}: a mask as {image.format}, which smooths its edges; save the mask as PNG")
    white_is_zero = image.mode.startswith("I;16") and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) in (0, (0,))
    image = ImageOps.exif_transpose(image)
    if image.mode in ("P", "PA"):
        return _of_palette(image.convert("P") if image.mode == "PA" else image, origin)
    if image.mode == "LA":
        image = image.getchannel("L")
    stored = _plane(np.asarray(image.convert("RGB") if image.mode == "RGBA" else image), origin)
    # The library turns other TIFFs around itself
    return stored.max() - stored if white_is_zero else stored


def _of_palette(image: Any, origin: str) -> NDArray[Any]:
    """Indices into the palette, which are labels; of an image of two colours 0 where it is black."""
    stored = np.asarray(image)
    used = np.unique(stored)
    colours = np.asarray(image.getpalette("RGB")).reshape(-1, 3)
    black = [index for index in used if index < len(colours) and not colours[index].any()]
    if len(used) > 2 or 0 in black:
        return stored
    if len(used) == 1 or not black:
        raise InputError(f"{origin}: a palette without black among its colours; expected black and one other colour")
    return np.where(stored == black[0], 0, max(1, int(used[used != black[0]][0])))


def _plane(array: NDArray[Any], origin: str) -> NDArray[Any]:
    if array.ndim == 3 and array.shape[-1] == 3 and (array == array[..., :1]).all():
        array = array[..., 0]
    if array.ndim == 3 and 1 in (array.shape[0], array.shape[-1]):
        array = array[0] if array.shape[0] == 1 else array[..., 0]
    if array.ndim != 2 or not array.size:
        raise InputError(f"{origin}: shape {array.shape}; expected one grey image, (h, w)")
    if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
        raise InputError(f"{origin}: type {array.dtype} or values that are not numbers; expected a mask of integers")
    return array


def binary_mask(stored: NDArray[Any], origin: str) -> Mask:
    """The mask (h, w) of an image of 0 and one other value.

    Raises:
        InputError: it has other values, such as those of smoothed edges.
    """
    values = np.unique(stored)
    if len(values) > 2 or (0 not in values):
        what = f"{len(values)} values" if len(values) > 1 else f"{values[0]:g} everywhere"
        raise InputError(
            f"{origin}: not a binary mask, {what}; expected 0 and one other value, saved without smoothing, as PNG"
        )
    return stored != 0


def brief(error: BaseException) -> str:
    """An error of another library in one short line."""
    return " ".join(str(error).split())[:120] or type(error).__name__
