"""Reading one radiograph, from a file or from memory, into a common form.

The format of a file is determined by its content, never by its extension. Anything but a single grey image is an
``ImageError`` of one line: what was given, what was expected, what to do. Nothing is repaired silently: an image that
cannot be read is never replaced by a black image.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from xgem.data.pixels import Voi, _by_depth, scale_array
from xgem.types import ImageError
from xgem.utils.hashing import array_hash

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image
    from torch import Tensor

    from xgem.data.pixels import Floats

    Source = str | os.PathLike[str] | Image | NDArray[Any] | Tensor


logger = logging.getLogger(__name__)
_PARSING = threading.Lock()  # NumPy parses headers with ast, which fails in several threads of Python 3.11 (gh-106905)


Kind = Literal["dicom", "npy", "image"]


VOI_CHOICES: tuple[str, ...] = ("none", "window", "lut")


MIN_SIDE = 32


# Smallest accepted range of grey levels: radiographs use most of [0, 1], and constant images have a range of 0
MIN_CONTRAST = 1e-3


_IMAGE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "JPEG2000", "PPM")


_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


_MAGIC = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP"}


ACCEPTED = "PNG, JPEG, TIFF, DICOM or .npy"


@dataclass(frozen=True)
class Radiograph:
    """One grey image as read.

    ``pixels`` (h, w) float32 in [0, 1]: stored values divided by the maximum of the bit depth, high is bright (bone);
    ``spacing``: (row, column) pixel spacing in mm, if the file states it; ``sha256`` of the file's bytes (for arrays,
    of bytes, shape and dtype); ``origin``: the file's name or ``"array"``.
    """

    pixels: Floats
    spacing: tuple[float, float] | None
    sha256: str
    origin: str


def read_image(
    source: Source,
    *,
    voi: Voi = "none",
    allow_any: bool = False,
    invert_monochrome1: bool = True,
    view: str | None = None,
) -> Radiograph:
    """Read a chest radiograph.

    Args:
        source: path of a PNG, JPEG, TIFF, DICOM or ``.npy`` file; a PIL image; a numpy array or torch tensor of shape
            (h, w), (1, h, w) or (h, w, 1), or with three equal channels. uint8 and uint16 span their full range, floats
            must lie in [0, 1]; other types are refused because their range is unknown.
        voi: value-of-interest transform for DICOM: ``"none"`` keeps the stored values, ``"window"`` and ``"lut"``
            apply the header's first window or LUT, if there is one, after the rescale. Other formats have none.
        allow_any: also accept DICOM of other modalities, body parts and views.
        invert_monochrome1: invert MONOCHROME1 (low is bright), after the VOI transform.
        view: the view that the image must show; a DICOM file that states another one is refused.

    Raises:
        ImageError: the source is missing, empty, truncated, not an image, in colour, constant, smaller than 32 pixels,
            or has several frames, NaN or infinite values, or values out of range.
    """
    if voi not in VOI_CHOICES:
        raise ImageError(f"voi {voi!r} is unknown; expected one of {', '.join(VOI_CHOICES)}")
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        data = file_bytes(path)
        origin, sha = path.name, hashlib.sha256(data).hexdigest()
        pixels, spacing = _decode(data, str(path), voi, allow_any, invert_monochrome1, view)
        return Radiograph(_checked(pixels, str(path)), spacing, sha, origin)
    array, pixels = _in_memory(source)
    return Radiograph(_checked(pixels, "array"), None, array_hash(array), "array")


def sniff(data: bytes) -> Kind:
    """The kind of a file by its first bytes; ``"image"`` is anything that is left to the image library."""
    if data[128:132] == b"DICM":
        return "dicom"
    if data.startswith(b"\x93NUMPY"):
        return "npy"
    # DICOM without preamble starts with a group 0002 or 0008 element in little endian
    if data[:2] in (b"\x02\x00", b"\x08\x00") and data[3:4] == b"\x00" and len(data) > 132:
        return "dicom"
    return "image"


def file_bytes(path: Path, expected: str = ACCEPTED) -> bytes:
    """A file's bytes; ImageError if it is missing, a folder, unreadable or empty."""
    if path.is_dir():
        raise ImageError(f"{path}: is a folder; expected one file: {expected}")
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{path}: cannot be read ({reason}); check the path and its permissions") from error
    if not data:
        raise ImageError(f"{path}: the file is empty; expected {expected}")
    return data


def _decode(
    data: bytes, name: str, voi: Voi, allow_any: bool, invert: bool, view: str | None
) -> tuple[Floats, tuple[float, float] | None]:
    kind = sniff(data)
    if kind == "dicom":
        from xgem.data.dicom import decode_dicom

        return decode_dicom(data, name, voi=voi, allow_any=allow_any, invert_monochrome1=invert, view=view)
    if kind == "npy":
        return scale_array(_load_npy(data, name), name), None
    return _decode_image(data, name), None


def _load_npy(data: bytes, name: str) -> NDArray[Any]:
    try:
        with _PARSING:
            return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ImageError(f"{name}: not a usable .npy file ({_brief(error)}); save it again with numpy.save") from error


def _decode_image(data: bytes, name: str) -> Floats:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS) as image:
            image.load()
            return _from_pil(image, name)
    except UnidentifiedImageError as error:
        if data[:4] in _TIFF:
            return _decode_other_tiff(data, name)
        known = next((kind for magic, kind in _MAGIC.items() if data.startswith(magic)), None)
        if known:
            raise ImageError(
                f"{name}: a damaged or unsupported {known} file; export it again as 8 or 16-bit PNG"
            ) from error
        raise ImageError(f"{name}: not a readable image; expected {ACCEPTED}") from error
    except ImageError:
        raise
    # What decoders raise for damaged files
    except (
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        IndexError,
        KeyError,
        TypeError,
        Image.DecompressionBombError,
    ) as error:
        raise ImageError(f"{name}: damaged or truncated image ({_brief(error)}); get the file again") from error


def _decode_other_tiff(data: bytes, name: str) -> Floats:
    """TIFF variants for which the image library has no decoder (16 bits with white as zero, BigTIFF, ...)."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            pages = len(tiff.pages)
            page: Any = tiff.pages[0]
            stored, bits, photometric = np.asarray(page.asarray()), int(page.bitspersample), int(page.photometric)
    # A damaged file can raise nearly any exception
    except Exception as error:
        raise ImageError(f"{name}: damaged or unsupported TIFF ({_brief(error)}); export it as 16-bit PNG") from error
    if pages > 1:
        raise ImageError(f"{name}: has {pages} frames; expected one image")
    if stored.dtype.kind == "i" and stored.dtype.itemsize <= 2:
        return _by_depth(stored.astype(np.float32) + 2.0 ** (bits - 1), bits, name, reverse=photometric == 0)
    if stored.dtype.kind == "u" and stored.dtype.itemsize <= 2 and stored.ndim == 2:
        return _by_depth(stored, bits, name, reverse=photometric == 0)
    return scale_array(stored, name)


def _from_pil(image: Image, name: str) -> Floats:
    from PIL import ImageOps

    if getattr(image, "n_frames", 1) > 1:
        raise ImageError(f"{name}: has {getattr(image, 'n_frames', 0)} frames; expected one image")
    tags: Any = getattr(image, "tag_v2", {})
    bits, kind, photometric = _first(tags.get(258)), _first(tags.get(339)), _first(tags.get(262))
    image = ImageOps.exif_transpose(image)
    mode = image.mode
    if mode in ("1", "L"):
        return scale_array(np.asarray(image.convert("L")), name)
    if mode.startswith("I;16"):
        stored = np.asarray(image).astype(np.float32)
        # Baseline TIFF: tag 262 = 0 is "white is zero"; the library inverts 8-bit images itself, but not 16-bit ones
        return _by_depth(stored, bits or 16, name, reverse=photometric == 0)
    if mode == "I":
        stored = np.asarray(image).astype(np.float64)
        if kind == 2 and bits in (8, 16):
            return _by_depth(stored + 2 ** (bits - 1), bits, name, reverse=photometric == 0)
        if bits not in (None, 16):
            raise ImageError(f"{name}: {bits}-bit integers; expected 8 or 16 bits, or floats in [0, 1]")
        return _by_depth(stored, 16, name, reverse=photometric == 0)
    if mode == "F":
        return scale_array(np.asarray(image), name)
    if mode == "LA":
        return scale_array(np.asarray(image.getchannel("L")), name)
    return scale_array(np.asarray(image.convert("RGB")), name)


def _first(value: Any) -> int | None:
    if isinstance(value, tuple | list):
        value = value[0] if value else None
    return int(value) if isinstance(value, int) else None


def _in_memory(source: Any) -> tuple[NDArray[Any], Floats]:
    """The array of an object in memory, for its hash, and its pixels (h, w) in [0, 1]."""
    if isinstance(source, np.ndarray):
        return source, scale_array(source, "array")
    if hasattr(source, "detach") and hasattr(source, "numpy"):
        import torch

        tensor: Tensor = source.detach().cpu()
        array = (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()
        return array, scale_array(array, "array")
    if hasattr(source, "getbands") and hasattr(source, "mode"):
        try:
            return np.asarray(source), _from_pil(source, "PIL image")
        except OSError as error:  # a lazily opened file turns out to be damaged
            raise ImageError(f"PIL image: damaged or truncated image ({_brief(error)}); get the file again") from error
    raise ImageError(f"cannot read a {type(source).__name__} as an image; expected a path, PIL image, array or tensor")


def _checked(pixels: Floats, name: str) -> Floats:
    height, width = pixels.shape
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{name}: {height} x {width} pixels; expected at least {MIN_SIDE} x {MIN_SIDE}")
    if not np.isfinite(pixels).all():
        raise ImageError(f"{name}: contains NaN or infinite values; clean the image first")
    if float(np.ptp(pixels)) < MIN_CONTRAST:
        raise ImageError(f"{name}: a constant image ({float(pixels.mean()):.3f} everywhere); expected a radiograph")
    return np.ascontiguousarray(pixels, dtype=np.float32)


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
