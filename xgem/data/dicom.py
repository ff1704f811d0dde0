"""DICOM radiographs: header checks, decoding, modality and VOI transforms (PS3.3 C.7.6.3, C.11.1, C.11.2)."""

from __future__ import annotations

import io
import math
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from xgem.labels.views import view_of
from xgem.types import ImageError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from xgem.data.pixels import Floats, Voi

# Projection radiography: computed (CR), digital (DX), digitised film (RG), and secondary captures (SC, OT) of archives
MODALITIES = frozenset({"CR", "DX", "RG", "SC", "OT"})
_CHEST = re.compile(r"CHEST|THORAX|TORAX|LUNG|THORACIC CAVITY|RIB", re.IGNORECASE)
# Pixel spacings outside this range are errors (metres in place of millimetres, zeros) and count as not stated
_SPACING_MM = (0.01, 10.0)
_ANYWAY = "allow_any=True (--allow-any) accepts it at your own risk"


def decode_dicom(
    data: bytes,
    name: str,
    *,
    voi: Voi,
    allow_any: bool,
    invert_monochrome1: bool,
    view: str | None = None,
) -> tuple[Floats, tuple[float, float] | None]:
    """Pixels (h, w) in [0, 1] and the (row, column) spacing in mm of a single-frame DICOM file.

    ``view``: the expected view; None accepts any.

    Raises:
        ImageError: not DICOM, truncated, without pixels, several frames, or (without ``allow_any``) not a chest
            radiograph or one whose ViewPosition is of another view.
    """
    import pydicom

    try:
        ds = pydicom.dcmread(io.BytesIO(data), force=True)
        _check_header(ds, name, allow_any, view)
        return _pixels(ds, name, voi, invert_monochrome1), _spacing(ds)
    except ImageError:
        raise
    # Decoders of four libraries raise all kinds of exceptions; all mean that the bytes cannot be used
    except Exception as error:
        text = " ".join(str(error).split())[:160] or type(error).__name__
        raise ImageError(f"{name}: damaged, truncated or unsupported DICOM ({text}); export it again") from error


def _check_header(ds: Dataset, name: str, allow_any: bool, view: str | None) -> None:
    """Refuse by its header what is not a single-frame chest radiograph of the expected view."""
    if not len(ds):
        raise ImageError(f"{name}: not a readable DICOM file; expected a chest radiograph")
    modality = str(ds.get("Modality", "") or "").strip().upper()
    part = str(ds.get("BodyPartExamined", "") or "").strip()
    if modality and modality not in MODALITIES and not allow_any:
        raise ImageError(f"{name}: DICOM of modality {modality}; expected a radiograph (CR or DX); {_ANYWAY}")
    if part and not _CHEST.search(part) and not allow_any:
        raise ImageError(f"{name}: DICOM of body part {part}; expected the chest; {_ANYWAY}")
    position = str(ds.get("ViewPosition", "") or "").strip().upper()
    shown = view_of(position)
    if view is not None and shown not in (None, view) and not allow_any:
        raise ImageError(
            f"{name}: DICOM of a {shown} view (ViewPosition {position}); expected a {view} view: pass it as "
            f"{shown}; {_ANYWAY}"
        )
    if "PixelData" not in ds:
        raise ImageError(f"{name}: DICOM without pixels ({_class_name(ds)}); expected a radiograph")
    frames = int(ds.get("NumberOfFrames", 1) or 1)
    if frames > 1:
        raise ImageError(f"{name}: DICOM with {frames} frames; expected one radiograph, export a single frame")


def _class_name(ds: Dataset) -> str:
    uid: Any = ds.get("SOPClassUID")
    return str(getattr(uid, "name", "") or "unknown class")


def _pixels(ds: Dataset, name: str, voi: Voi, invert_monochrome1: bool) -> Floats:
    """Decode, transform and scale the pixels: (h, w) in [0, 1], high is bright."""
    from xgem.data.pixels import grey

    # Decode
    if "TransferSyntaxUID" not in ds.file_meta:  # no file header: the encoding that the reader guessed
        from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

        implicit = ds.original_encoding[0]
        ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
    photometric = str(ds.PhotometricInterpretation).upper()
    signed = bool(int(ds.get("PixelRepresentation", 0) or 0))
    # By default the library clears the bits above BitsStored, which wraps values if the header is wrong
    ds.pixel_array_options(correct_unused_bits=signed)
    stored: NDArray[Any] = ds.pixel_array
    # Colour images that are grey in fact
    if photometric == "PALETTE COLOR":
        from pydicom.pixels.processing import apply_color_lut

        stored = apply_color_lut(stored, ds)
        return grey((stored.astype(np.float32) / np.float32(np.iinfo(stored.dtype).max)), name)
    if int(ds.get("SamplesPerPixel", 1)) == 3:
        return grey((stored / float(2 ** int(ds.BitsStored) - 1)).astype(np.float32), name)
    if stored.ndim != 2:
        raise ImageError(f"{name}: DICOM pixels of shape {stored.shape}; expected one grey frame (h, w)")
    # Stored values, which must be in the range of the header
    low, high = _stored_range(ds)
    if not signed:
        stored = _stored_bits(stored, ds)
    if int(stored.min()) < low or int(stored.max()) > high:
        raise ImageError(
            f"{name}: stored values {stored.min()} to {stored.max()} exceed the {int(ds.BitsStored)} bits of the "
            f"header ({low} to {high}); export it again"
        )
    # Grey levels
    pixels = _to_unit(stored, ds, low, high, voi)
    if photometric == "MONOCHROME1" and invert_monochrome1:
        pixels = 1 - pixels
    padding = _padding(stored, ds)
    if padding is not None:
        pixels[padding] = 0  # pixels outside the detector are background, as is the padding to a square
    return pixels


def _stored_range(ds: Dataset) -> tuple[int, int]:
    """The lowest and the highest value that the header allows."""
    bits = int(ds.BitsStored)
    if int(ds.get("PixelRepresentation", 0) or 0):
        return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def _stored_bits(stored: NDArray[Any], ds: Dataset) -> NDArray[Any]:
    """Unsigned values, shifted to bit 0 and without the overlay planes that old files store in the unused bits."""
    bits = int(ds.BitsStored)
    shift = int(ds.get("HighBit", bits - 1)) + 1 - bits
    if shift > 0:
        stored = stored >> shift
    embedded = any(int(ds[group, 0x0102].value or 0) > 0 for group in range(0x6000, 0x6020, 2) if (group, 0x0102) in ds)
    return stored & np.asarray(2**bits - 1, dtype=stored.dtype) if embedded else stored


def _to_unit(stored: NDArray[Any], ds: Dataset, low: int, high: int, voi: Voi) -> Floats:
    """Modality and VOI transforms, then scaling of the possible range to [0, 1]."""
    from pydicom.pixels.processing import apply_modality_lut, apply_voi

    # Modality transform, with the range of its result
    if "ModalityLUTSequence" in ds and ds.ModalityLUTSequence:
        values = apply_modality_lut(stored, ds).astype(np.float64)
        bottom, top = 0.0, float(2 ** int(ds.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    else:
        slope, intercept = float(ds.get("RescaleSlope", 1) or 1), float(ds.get("RescaleIntercept", 0) or 0)
        values = stored.astype(np.float64) * slope + intercept
        bottom, top = sorted((low * slope + intercept, high * slope + intercept))
    # VOI transform
    if voi == "lut" and "VOILUTSequence" in ds and ds.VOILUTSequence:
        lut_bits = int(ds.VOILUTSequence[0].LUTDescriptor[2])
        looked_up = apply_voi(np.rint(values).astype(np.int64), ds, index=0)
        return (looked_up / float(2**lut_bits - 1)).astype(np.float32)
    if voi == "window" and "WindowCenter" in ds and "WindowWidth" in ds:
        centre, width = _first(ds.WindowCenter), _first(ds.WindowWidth)
        if centre is not None and width is not None:
            return window(values, centre, width, str(ds.get("VOILUTFunction", "LINEAR") or "LINEAR"))
    return ((values - bottom) / (top - bottom)).astype(np.float32)


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


def _padding(stored: NDArray[Any], ds: Dataset) -> NDArray[np.bool_] | None:
    """Mask (h, w) of the pixels with the padding value; None if there are none, or only such."""
    value = ds.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = ds.get("PixelPaddingRangeLimit")
    first, last = sorted((value, limit if isinstance(limit, int) else value))
    mask = (stored >= first) & (stored <= last)
    return mask if mask.any() and not mask.all() else None


def _first(value: Any) -> float | None:
    """The first of one or several numbers; None if it is not finite."""
    if value is None or isinstance(value, str):
        return None
    number = float(value if isinstance(value, int | float) else value[0])
    return number if math.isfinite(number) else None


def _spacing(ds: Dataset) -> tuple[float, float] | None:
    """The calibrated pixel spacing if there is one, else the detector's; None if no value is plausible."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        value: Any = ds.get(keyword)
        if value is None or isinstance(value, str) or len(value) != 2:
            continue
        row, column = float(value[0]), float(value[1])
        if all(_SPACING_MM[0] <= side <= _SPACING_MM[1] for side in (row, column)):
            return row, column
    return None
