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
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from xgem.configs.base import Rescale, Voi
from xgem.data.pixels import Decoded, Reading, brightened, by_depth, looks_negative, scale_array, stretched
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


VOI_CHOICES: tuple[str, ...] = get_args(Voi)
RESCALE_CHOICES: tuple[str, ...] = get_args(Rescale)


MIN_SIDE = 32


NEGATIVE = "looks like a negative (air is bright); invert=True turns it around"
"""The note of an image that is read as it always was."""


# Smallest accepted range of grey levels: radiographs use most of [0, 1], and constant images have a range of 0
MIN_CONTRAST = 1e-3


_IMAGE_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "JPEG2000", "PPM", "WEBP")


_TIFF = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")


_MAGIC = {b"\x89PNG": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP", b"RIFF": "WebP"}


ACCEPTED = "PNG, JPEG, TIFF, DICOM or .npy"


@dataclass(frozen=True)
class Radiograph:
    """One grey image as read.

    ``pixels`` (h, w) float32 in [0, 1]: stored values divided by the maximum of the bit depth, high is bright (bone);
    ``spacing``: (row, column) pixel spacing in mm, if the file states it; ``sha256`` of the file's bytes (for arrays,
    of bytes, shape and dtype); ``origin``: the file's name or ``"array"``. ``aspect``: height of a pixel divided by its
    width; ``used``: share of the stated range that the values span; ``notes``: what the user should know, one line
    each.
    """

    pixels: Floats
    spacing: tuple[float, float] | None
    sha256: str
    origin: str
    aspect: float = 1.0
    used: float = 1.0
    notes: tuple[str, ...] = ()


def read_image(
    source: Source,
    *,
    voi: Voi = "none",
    allow_any: bool = False,
    invert_monochrome1: bool = True,
    view: str | None = None,
    rescale: Rescale = "auto",
    invert: bool = False,
) -> Radiograph:
    """Read a chest radiograph.

    What is doubtful but readable (values in a small part of their range, an image that looks like a negative, a header
    value that cannot be parsed) is in ``notes`` of the result, not logged.

    Args:
        source: path of a PNG, JPEG, TIFF, DICOM or ``.npy`` file; a PIL image; a numpy array or torch tensor of shape
            (h, w), (1, h, w) or (h, w, 1), or with three equal channels. uint8 and uint16 span their full range, floats
            must lie in [0, 1]; other types are refused because their range is unknown.
        voi: value-of-interest transform for DICOM: ``"none"`` keeps the stored values, ``"window"`` and ``"lut"``
            apply the header's first window or LUT, if there is one, after the rescale. Other formats have none.
        allow_any: also accept DICOM of other modalities, body parts and views.
        invert_monochrome1: invert MONOCHROME1 (low is bright), after the VOI transform.
        view: the view that the image must show; a DICOM file that states another one is refused.
        rescale: ``"header"`` divides by the maximum of the bit depth that the file states (BitsStored, sBIT, or the
            size of its cells); ``"auto"`` does so too, unless the values fill less than a quarter of 16-bit cells: then
            by that of the smallest depth that holds them (12 bits in a 16-bit PNG); ``"minmax"`` stretches the values
            from the lowest to the highest; ``"percentile"`` is ``"auto"``, after which the 99.5th percentile becomes 1:
            collections whose images are scaled differently become alike.
        invert: turn the image around, for negatives whose file does not say so.

    Raises:
        ImageError: the source is missing, empty, truncated, not an image, in colour, constant, smaller than 32 pixels,
            or has several frames, NaN or infinite values, or values out of range.
    """
    if voi not in VOI_CHOICES:
        raise ImageError(f"voi {voi!r} is unknown; expected one of {', '.join(VOI_CHOICES)}")
    if rescale not in RESCALE_CHOICES:
        raise ImageError(f"rescale {rescale!r} is unknown; expected one of {', '.join(RESCALE_CHOICES)}")
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        data, reading, origin = file_bytes(path), Reading(str(path), rescale), path.name
        sha = hashlib.sha256(data).hexdigest()
        decoded = _decode(data, reading, voi=voi, allow_any=allow_any, invert_monochrome1=invert_monochrome1, view=view)
    else:
        reading, origin = Reading("array", rescale), "array"
        array, pixels = _in_memory(source, reading)
        sha, decoded = array_hash(array), Decoded(pixels)
    pixels = _checked(decoded, reading, invert)
    if invert_monochrome1 and not invert and looks_negative(pixels):
        reading.notes.append(NEGATIVE)
    return Radiograph(pixels, decoded.spacing, sha, origin, decoded.aspect, reading.used, tuple(reading.notes))


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


def _decode(data: bytes, reading: Reading, **options: Any) -> Decoded:
    """Decode a file; ``options`` are those of :func:`xgem.data.dicom.decode_dicom`."""
    kind = sniff(data)
    if kind == "dicom":
        from xgem.data.dicom import decode_dicom

        return decode_dicom(data, reading, **options)
    if kind == "npy":
        return Decoded(scale_array(_load_npy(data, reading.name), reading))
    return Decoded(_decode_image(data, reading))


def _load_npy(data: bytes, name: str) -> NDArray[Any]:
    try:
        with _PARSING:
            return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ImageError(f"{name}: not a usable .npy file ({_brief(error)}); save it again with numpy.save") from error


def _decode_image(data: bytes, reading: Reading) -> Floats:
    from PIL import Image, UnidentifiedImageError

    name = reading.name
    try:
        with Image.open(io.BytesIO(data), formats=_IMAGE_FORMATS) as image:
            image.load()
            return _from_pil(image, reading, _significant_bits(data))
    except UnidentifiedImageError as error:
        if data[:4] in _TIFF:
            return _decode_other_tiff(data, reading)
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


def _decode_other_tiff(data: bytes, reading: Reading) -> Floats:
    """TIFF variants for which the image library has no decoder (16 bits with white as zero, BigTIFF, ...)."""
    import tifffile

    name = reading.name
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
        low = -(2 ** (bits - 1))
        return by_depth(stored.astype(np.float32), bits, reading, reverse=photometric == 0, low=low)
    if stored.dtype.kind == "u" and stored.dtype.itemsize <= 2 and stored.ndim == 2:
        return by_depth(stored, bits, reading, reverse=photometric == 0)
    return scale_array(stored, reading)


def _significant_bits(data: bytes) -> int | None:
    """The bits of a grey PNG's values that count (its chunk sBIT); None if it does not say."""
    at = 8
    while data.startswith(b"\x89PNG") and at + 9 <= len(data) and data[at + 4 : at + 8] not in (b"IDAT", b"IEND"):
        if data[at + 4 : at + 8] == b"sBIT":
            return data[at + 8] or None
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    return None


def _from_pil(image: Image, reading: Reading, significant: int | None = None) -> Floats:
    from PIL import ImageOps

    name = reading.name
    if getattr(image, "n_frames", 1) > 1:
        raise ImageError(f"{name}: holds {getattr(image, 'n_frames', 0)} frames; expected one image")
    tags: Any = getattr(image, "tag_v2", {})
    bits, kind, photometric = _first(tags.get(258)), _first(tags.get(339)), _first(tags.get(262))
    image = ImageOps.exif_transpose(image)
    mode = image.mode
    # Baseline TIFF 262 = 0 is "white is zero"; the library inverts 8-bit images itself, but not 16-bit ones
    reverse = photometric == 0
    if mode.startswith("I;16") and "transparency" not in image.info:
        stored = np.asarray(image).astype(np.float32)
        # By the PNG standard values are scaled to all 16 bits; writers that leave them as they are stay below sBIT
        plain = significant is not None and float(stored.max(initial=0)) < 2**significant
        bits, stated = (
            (significant, True) if significant is not None and plain else (bits or 16, bits not in (None, 16))
        )
        return by_depth(stored, bits, reading, reverse=reverse, stated=stated)
    if mode == "I":
        stored = np.asarray(image).astype(np.float64)
        if kind == 2 and bits in (8, 16):
            return by_depth(stored, bits, reading, reverse=reverse, low=-(2 ** (bits - 1)))
        if bits not in (None, 16):
            raise ImageError(f"{name}: {bits}-bit integers; expected 8 or 16 bit, or float in [0, 1]")
        return by_depth(stored, 16, reading, reverse=reverse)
    if mode == "F":
        return scale_array(np.asarray(image), reading)
    opaque = _opaque(image)
    grey_image = image.convert("L") if mode in ("1", "L") else image.getchannel("L") if mode == "LA" else None
    pixels = scale_array(np.asarray(image.convert("RGB") if grey_image is None else grey_image), reading)
    if opaque is None:
        return pixels
    reading.notes.append("transparent pixels are read as black")
    return pixels * opaque


def _opaque(image: Image) -> Floats | None:
    """The alpha channel (h, w) in [0, 1]; None if the image has none, or nothing is transparent."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return None
    alpha = np.asarray(image.convert("RGBA").getchannel("A"))
    return None if alpha.min() == 255 else alpha.astype(np.float32) / np.float32(255)


def _first(value: Any) -> int | None:
    if isinstance(value, tuple | list):
        value = value[0] if value else None
    return int(value) if isinstance(value, int) else None


def _in_memory(source: Any, reading: Reading) -> tuple[NDArray[Any], Floats]:
    """The array of an object in memory, for its hash, and its pixels (h, w) in [0, 1]."""
    if isinstance(source, np.ndarray):
        return source, scale_array(source, reading)
    if hasattr(source, "detach") and hasattr(source, "numpy"):
        import torch

        tensor: Tensor = source.detach().cpu()
        array = (tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor).numpy()
        return array, scale_array(array, reading)
    if hasattr(source, "getbands") and hasattr(source, "mode"):
        try:
            reading.name = "PIL image"
            return np.asarray(source), _from_pil(source, reading)
        except OSError as error:  # a lazily opened file turns out to be damaged
            raise ImageError(f"PIL image: damaged or truncated image ({_brief(error)}); get the file again") from error
    raise ImageError(f"cannot read a {type(source).__name__} as an image; expected a path, PIL image, array or tensor")


def _checked(decoded: Decoded, reading: Reading, invert: bool) -> Floats:
    """The pixels, contiguous, rescaled and inverted if so asked; ImageError if they are no radiograph's."""
    pixels, name = decoded.pixels, reading.name
    height, width = pixels.shape
    if min(height, width) < MIN_SIDE:
        raise ImageError(f"{name}: {height} x {width} pixels; expected at least {MIN_SIDE} x {MIN_SIDE}")
    if not np.isfinite(pixels).all():
        raise ImageError(f"{name}: contains NaN or infinite values; clean the image first")
    if reading.rescale == "minmax":
        pixels = stretched(pixels, decoded.inside)
    if float(np.ptp(pixels)) < MIN_CONTRAST:
        raise ImageError(f"{name}: a constant image ({float(pixels.mean()):.3f} everywhere); expected a radiograph")
    pixels = np.ascontiguousarray(1 - pixels if invert else pixels, dtype=np.float32)
    if reading.rescale == "percentile":
        pixels = brightened(pixels, decoded.inside)
    # Pixels outside the detector are background, as is the padding to a square
    return pixels if decoded.inside is None else np.where(decoded.inside, pixels, np.float32(0))


def _brief(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
