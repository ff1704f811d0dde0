"""DICOM radiographs: header checks, decoding, modality and VOI transforms (PS3.3 C.7.6.3, C.11.1, C.11.2)."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np

from xgem.data.dicom_header import (
    aspect_of,
    check_header,
    number_of,
    numbers_of,
    photometric_of,
    spacing_of,
    text_of,
)
from xgem.data.pixels import Decoded, value_range
from xgem.types import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from xgem.configs.base import Voi
    from xgem.data.pixels import Floats, Reading


def decode_dicom(
    data: bytes,
    reading: Reading,
    *,
    voi: Voi,
    allow_any: bool,
    invert_monochrome1: bool,
    view: str | None = None,
) -> Decoded:
    """The grey levels of a single-frame DICOM file, with its spacing.

    ``view``: the expected view; None accepts any. Optional values that cannot be parsed count as not stated; what was
    found is in the notes of ``reading``.

    Raises:
        ImageError: not DICOM, truncated, without pixels, several frames, an encoding that cannot be decoded here, or
            (without ``allow_any``) not a chest radiograph or one whose header states another view.
    """
    import pydicom

    name = reading.name
    try:
        ds = pydicom.dcmread(io.BytesIO(data), force=True)
        check_header(ds, reading, allow_any, view)
        spacing = spacing_of(ds, reading)
        pixels, inside = _pixels(ds, reading, voi, invert_monochrome1)
        return Decoded(pixels, spacing, aspect_of(ds, spacing, reading), inside)
    except ImageError:
        raise
    # Decoders of four libraries end here; whatever they raise means that the bytes cannot be used.
    except Exception as error:
        text = " ".join(str(error).split())[:160] or type(error).__name__
        raise ImageError(f"{name}: damaged, truncated or unsupported DICOM ({text}); export it again") from error


def _pixels(
    ds: Dataset, reading: Reading, voi: Voi, invert_monochrome1: bool
) -> tuple[Floats, NDArray[np.bool_] | None]:
    """Decode, transform and scale the pixels: (h, w) in [0, 1], high is bright; and which are no padding."""
    from xgem.data.pixels import grey

    name = reading.name
    stored = _decoded(ds, reading)
    photometric = photometric_of(ds)
    # Colour images that are grey in fact
    if photometric == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        stored = apply_color_lut(stored, ds)
        return grey((stored.astype(np.float32) / np.float32(np.iinfo(stored.dtype).max)), name), None
    if int(ds.get("SamplesPerPixel", 1)) == 3:
        return grey((stored / float(2 ** int(ds.BitsStored) - 1)).astype(np.float32), name), None
    if stored.ndim != 2:
        raise ImageError(f"{name}: DICOM pixels of shape {stored.shape}; expected one grey frame (h, w)")
    # Stored values, which must be in the range of the header
    low, high = _stored_range(ds)
    stored = _stored_bits(stored, ds, reading)
    if int(stored.min()) < low or int(stored.max()) > high:
        raise ImageError(
            f"{name}: stored values {stored.min()} to {stored.max()} exceed the {int(ds.BitsStored)} bits of the "
            f"header ({low} to {high}); export it again"
        )
    # Grey levels
    inside = _inside(stored, ds, reading)
    pixels = _to_unit(stored, inside, ds, voi, reading)
    if photometric == "MONOCHROME1" and invert_monochrome1:
        pixels = 1 - pixels
    if photometric == "MONOCHROME2" and text_of(ds, "PresentationLUTShape") == "INVERSE":
        reading.notes.append(
            "MONOCHROME2 with PresentationLUTShape INVERSE: read as MONOCHROME2; invert=True inverts it"
        )
    return pixels, inside


def _decoded(ds: Dataset, reading: Reading) -> NDArray[Any]:
    """The pixels as the decoder gives them.

    Raises:
        ImageError: no decoder is installed for the transfer syntax.
    """
    from pydicom.pixels import get_decoder
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if "TransferSyntaxUID" not in ds.file_meta:  # no file header: the encoding that the reader guessed
        implicit = ds.original_encoding[0]
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    syntax = ds.file_meta.TransferSyntaxUID
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        available = False
    if not available:
        called = syntax if syntax.name == syntax else f"{syntax.name} ({syntax})"
        raise ImageError(
            f"{reading.name}: DICOM of transfer syntax {called}, which no decoder here reads; export it uncompressed "
            "(Explicit VR Little Endian)"
        )
    # What the decoder would stumble over
    ds.PhotometricInterpretation = photometric_of(ds)
    if not numbers_of(ds, "NumberOfFrames", reading) and "NumberOfFrames" in ds:
        del ds.NumberOfFrames
    # By default the library clears the bits above BitsStored, which wraps values if the header is wrong
    ds.pixel_array_options(correct_unused_bits=False)
    return ds.pixel_array


def _stored_range(ds: Dataset) -> tuple[int, int]:
    """The lowest and the highest value that the header allows."""
    bits = int(ds.BitsStored)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if _is_signed(ds) else (0, 2**bits - 1)


def _is_signed(ds: Dataset) -> bool:
    return bool(int(ds.get("PixelRepresentation", 0) or 0))


def _stored_bits(stored: NDArray[Any], ds: Dataset, reading: Reading) -> NDArray[Any]:
    """Values shifted to bit 0, without what old files store in the unused bits (overlays; of signed values all)."""
    bits = int(ds.BitsStored)
    shift = int(number_of(ds, "HighBit", bits - 1, reading)) + 1 - bits
    if _is_signed(ds):
        above = max(0, stored.dtype.itemsize * 8 - bits - max(0, shift))
        return (stored << above) >> (above + max(0, shift))  # arithmetic: the sign is kept
    if shift > 0:
        stored = stored >> shift
    embedded = any(int(ds[group, 0x0102].value or 0) > 0 for group in range(0x6000, 0x6020, 2) if (group, 0x0102) in ds)
    return stored & np.asarray(2**bits - 1, dtype=stored.dtype) if embedded else stored


def _to_unit(stored: NDArray[Any], inside: NDArray[np.bool_] | None, ds: Dataset, voi: Voi, reading: Reading) -> Floats:
    """Modality and VOI transforms, then scaling of the possible range to [0, 1]."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    # Modality transform, with the range of its result
    low, high = _stored_range(ds)
    slope, intercept = 1.0, 0.0
    modality_bits = _lut_bits(ds, "ModalityLUTSequence", reading)
    if modality_bits is not None:
        values = apply_modality_lut(stored, ds).astype(np.float64)
    else:
        slope = number_of(ds, "RescaleSlope", 1, reading) or 1.0
        intercept = number_of(ds, "RescaleIntercept", 0, reading)
        values = stored.astype(np.float64) * slope + intercept
    # VOI transform
    voi_bits = _lut_bits(ds, "VOILUTSequence", reading) if voi == "lut" else None
    if voi_bits is not None:
        looked_up = apply_voi(np.rint(values).astype(np.int64), ds, index=0)
        return (looked_up / float(2**voi_bits - 1)).astype(np.float32)
    if voi == "window":
        centre, width = (numbers_of(ds, keyword, reading) for keyword in ("WindowCenter", "WindowWidth"))
        if centre and width:
            return window(values, centre[0], width[0], text_of(ds, "VOILUTFunction") or "LINEAR")
    if modality_bits is not None:
        return (values / float(2**modality_bits - 1)).astype(np.float32)
    counted = stored if inside is None else stored[inside]
    stated = int(ds.BitsStored) < int(ds.BitsAllocated)
    low, high = value_range(reading, (int(counted.min()), int(counted.max())), low, high, stated=stated)
    bottom, top = sorted((low * slope + intercept, high * slope + intercept))
    return np.clip((values - bottom) / (top - bottom), 0, 1).astype(np.float32)


def _lut_bits(ds: Dataset, keyword: str, reading: Reading) -> int | None:
    """Bits of the entries of a sequence's first LUT; None if there is none, with a note if its item is empty."""
    items = ds.get(keyword)
    if not items:
        return None
    if not items[0].get("LUTDescriptor") or not items[0].get("LUTData"):
        reading.notes.append(f"{keyword} has an item without a LUT: taken as not stated")
        return None
    return int(items[0].LUTDescriptor[2])


def window(values: NDArray[np.float64], centre: float, width: float, function: str = "LINEAR") -> Floats:
    """Apply a window (PS3.3 C.11.2.1.2 and C.11.2.1.3) to [0, 1]: LINEAR, LINEAR_EXACT or SIGMOID."""
    name = function.upper()
    if name == "SIGMOID":
        # The logistic function as a hyperbolic tangent, which cannot overflow
        return (0.5 + 0.5 * np.tanh(2 * (values - centre) / width)).astype(np.float32)
    if name == "LINEAR_EXACT":
        return np.clip((values - centre) / width + 0.5, 0, 1).astype(np.float32)
    if width <= 1:
        return (values > centre - 0.5).astype(np.float32)
    return np.clip((values - (centre - 0.5)) / (width - 1) + 0.5, 0, 1).astype(np.float32)


def _inside(stored: NDArray[Any], ds: Dataset, reading: Reading) -> NDArray[np.bool_] | None:
    """Mask (h, w) of the pixels without the padding value; None if there are only such, or none.

    A padding value that is written as unsigned beside signed pixels, or the other way round, is read by its bits.
    """
    ends = [
        int(number)
        for keyword in ("PixelPaddingValue", "PixelPaddingRangeLimit")
        for number in numbers_of(ds, keyword, reading)[:1]
    ]
    if not ends or "PixelPaddingValue" not in ds:
        return None
    cell = 2 ** int(ds.BitsAllocated)
    if _is_signed(ds):
        ends = [end - cell if end >= cell // 2 else end for end in ends]
    else:
        ends = [end + cell if end < 0 else end for end in ends]
    mask = (stored < min(ends)) | (stored > max(ends))
    return mask if mask.any() and not mask.all() else None
