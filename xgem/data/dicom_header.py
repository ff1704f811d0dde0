"""Headers of DICOM radiographs: what is refused by them, and their optional values, which may be wrong."""

from __future__ import annotations

import math
import re
import unicodedata
from functools import cache
from typing import TYPE_CHECKING, Any, Final

from xgem.labels.views import view_of
from xgem.types import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from xgem.data.pixels import Reading

MODALITIES: Final = frozenset({"CR", "DX", "DR", "XR", "RG", "SC", "OT"})
"""Projection radiography: computed, digital (DX; DR and XR, which are not of the standard), digitised film, and the
secondary captures that archives relabel."""
# Compared without accents, in capitals; a character that was decoded wrongly ("T?RAX") may be any one or two
_CHEST: Final = re.compile(
    r"CHEST|CHST|THORA|TORAX|TORAKS|T[^A-Z]{1,2}RAX|LUNG|RIB|\bCXR|\bCX\b|PULMO|POUMON|POLMON|PETTO|PECHO|PEITO|BRUST"
    r"|BORST|BROST|KLATKA|HRUDNIK|MELLKAS|GOGUS|AKCIGER|ГРУД|ЛЕГК|ОГК|胸|肺|가슴|흉부"
)
_VIEW_CODES: Final = {
    "AnteroPosterior": "AP",
    "PosteroAnterior": "PA",
    "LeftLateral": "LL",
    "RightLateral": "RL",
    "LateralProjection": "LATERAL",
    "LeftAnteriorOblique": "LAO",
    "RightAnteriorOblique": "RAO",
    "LeftPosteriorOblique": "LPO",
    "RightPosteriorOblique": "RPO",
}
"""Codes of ViewCodeSequence (PS3.16, CID 4010), by pydicom's names, and the equal values of ViewPosition."""
# Spacings outside this range are errors (metres instead of millimetres, zeros) and are ignored
_SPACING_MM: Final = (0.01, 10.0)
_ANYWAY: Final = "allow_any=True (--allow-any, for a manifest that of xgem data prepare) accepts it at your own risk"


def text_of(ds: Dataset, keyword: str) -> str:
    """A value as text in capitals without blanks around it; empty if it is not stated."""
    value: Any = ds.get(keyword)
    return "" if value is None else str(value).strip().upper()


def numbers_of(ds: Dataset, keyword: str, reading: Reading) -> list[float]:
    """The finite numbers of an optional value; empty, with a note, if one cannot be parsed, and if it is not stated."""
    value: Any = ds.get(keyword)
    values = list(value) if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue" else [value]
    stated = [one for one in values if one is not None and str(one).strip()]
    try:
        numbers = [float(one) for one in stated]
    except (TypeError, ValueError):
        numbers = [math.nan]
    if all(map(math.isfinite, numbers)):
        return numbers
    note = f"{keyword} {str(value)[:40]!r} is no number: taken as not stated"
    if note not in reading.notes:
        reading.notes.append(note)
    return []


def number_of(ds: Dataset, keyword: str, default: float, reading: Reading) -> float:
    """The first number of an optional value; ``default`` if it is not stated, or cannot be parsed."""
    return next(iter(numbers_of(ds, keyword, reading)), default)


def check_header(ds: Dataset, reading: Reading, allow_any: bool, view: str | None) -> None:
    """Refuse by its header what is not a single-frame chest radiograph of the expected view.

    Raises:
        ImageError: no DICOM, without pixels, several frames, or (without ``allow_any``) of another modality, body part
            or view.
    """
    name = reading.name
    if not len(ds):
        raise ImageError(f"{name}: not a readable DICOM file; expected a chest radiograph")
    modality, part = text_of(ds, "Modality"), text_of(ds, "BodyPartExamined")
    if modality and modality not in MODALITIES and not allow_any:
        raise ImageError(f"{name}: DICOM of modality {modality}; expected a radiograph (CR or DX); {_ANYWAY}")
    if part and not is_chest(part) and not allow_any:
        raise ImageError(f"{name}: DICOM of body part {part}; expected the chest; {_ANYWAY}")
    position, stated = stated_position(ds)
    shown = view_of(position)
    if view is not None and shown not in (None, view) and not allow_any:
        raise ImageError(
            f"{name}: DICOM of a {shown} view ({stated}); expected a {view} view: pass it as {shown}; {_ANYWAY}"
        )
    if "PixelData" not in ds:
        raise ImageError(f"{name}: DICOM without pixels ({_class_name(ds)}); expected a radiograph")
    frames = number_of(ds, "NumberOfFrames", 1, reading)
    if frames > 1:
        raise ImageError(f"{name}: DICOM with {frames:g} frames; expected one radiograph, export a single frame")


def is_chest(part: str) -> bool:
    """Whether a value of BodyPartExamined means the chest, in one of several languages, with or without accents."""
    letters = unicodedata.normalize("NFKD", part.upper())
    plain = "".join(letter for letter in letters if not unicodedata.combining(letter))
    # NFKD takes Korean syllables apart, too
    return any(_CHEST.search(written) for written in (plain, part.upper()))


def stated_position(ds: Dataset) -> tuple[str, str]:
    """The view as a value of ViewPosition, and the attribute that states it, for messages; empty if none is stated.

    ViewCodeSequence counts where ViewPosition is not one of a known view (DX leaves it empty).
    """
    position = text_of(ds, "ViewPosition")
    if view_of(position) is None:
        for item in ds.get("ViewCodeSequence") or ():
            coded = _position_of_code(text_of(item, "CodeValue"), text_of(item, "CodingSchemeDesignator"))
            if coded is not None:
                return coded, f"ViewCodeSequence {text_of(item, 'CodeMeaning').lower() or coded}"
    return position, f"ViewPosition {position}"


@cache
def _position_of_code(value: str, scheme: str) -> str | None:
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    scheme = "SRT" if scheme in ("SNM3", "99SDM") else scheme
    if (value, scheme) == ("R-10214", "SRT"):  # the one that pydicom's table of SNOMED RT lacks
        return "PA"
    code = Code(value, scheme, "")  # codes of SNOMED RT equal those of SNOMED CT that replaced them
    views: Any = codes.cid4010
    return next((position for name, position in _VIEW_CODES.items() if code == getattr(views, name)), None)


def _class_name(ds: Dataset) -> str:
    uid: Any = ds.get("SOPClassUID")
    return str(getattr(uid, "name", "") or "unknown class")


def photometric_of(ds: Dataset) -> str:
    """PhotometricInterpretation without blanks inside ("MONOCHROME 1")."""
    value = text_of(ds, "PhotometricInterpretation")
    return value.replace(" ", "") if value.startswith("MONO") else value


def spacing_of(ds: Dataset, reading: Reading) -> tuple[float, float] | None:
    """The calibrated pixel spacing if there is one, else the detector's; None if no value is plausible."""
    for keyword in ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing"):
        numbers = numbers_of(ds, keyword, reading)
        if len(numbers) == 2 and all(_SPACING_MM[0] <= side <= _SPACING_MM[1] for side in numbers):
            return numbers[0], numbers[1]
        if numbers:
            reading.notes.append(f"{keyword} {str(ds.get(keyword))[:40]} is no spacing in mm: taken as not stated")
    return None


def aspect_of(ds: Dataset, spacing: tuple[float, float] | None, reading: Reading) -> float:
    """Height of a pixel divided by its width, by the spacing or PixelAspectRatio; 1 if neither is stated."""
    sides = list(spacing) if spacing else numbers_of(ds, "PixelAspectRatio", reading)
    return sides[0] / sides[1] if len(sides) == 2 and min(sides) > 0 else 1.0
