"""Headers of DICOM files: what of them a manifest needs, read without the pixels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from xgem.data.dicom_header import aspect_of, spacing_of, stated_position
from xgem.data.pixels import Reading
from xgem.data.read import sniff
from xgem.data.tables import sex_of, years_of
from xgem.labels.views import view_of, view_of_words
from xgem.types import ImageError

if TYPE_CHECKING:
    from pydicom.dataset import Dataset


def read_header(path: Path, *, force: bool = False) -> Dataset:
    """A DICOM file's data elements, the long ones (pixels) left on the disk; ``force``: also without DICOM's preamble.

    Raises:
        ImageError: no DICOM file.
    """
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        return pydicom.dcmread(path, defer_size="1 KB", force=force)
    except InvalidDicomError:
        raise ImageError(f"{path}: not a DICOM file") from None
    # The library raises whatever the damage leads to
    except Exception as error:
        raise ImageError(f"{path}: damaged DICOM file ({' '.join(str(error).split())[:120]})") from error


def is_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does, whatever its name; not where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return sniff(stream.read(256)) == "dicom"
    except (OSError, ValueError):
        return False


def text_of(ds: Dataset, keyword: str) -> str:
    """An element as text without surrounding blanks; empty where it is missing or has no value."""
    try:
        value: Any = ds.get(keyword)
    # An element that cannot be parsed says nothing
    except Exception:
        return ""
    return "" if value is None else str(value).strip()


def view_in(ds: Dataset) -> str | None:
    """The view by ViewPosition, or else by ViewCodeSequence, its code or its meaning; None where none tells."""
    position, _ = stated_position(ds)
    codes: Any = ds.get("ViewCodeSequence")
    return view_of(position) or (view_of_words(text_of(codes[0], "CodeMeaning")) if codes and not position else None)


class Grid(NamedTuple):
    """The stored pixels of an image: ``size`` (h, w), and the height of a pixel divided by its width."""

    size: tuple[int, int]
    aspect: float


def uneven_grid(path: Path) -> Grid | None:
    """The grid of a DICOM file whose pixels are not square (``Radiograph.aspect``); None for all other files.

    Raises:
        ImageError: a damaged DICOM file.
    """
    try:
        with path.open("rb") as stream:
            start = stream.read(256)
    except OSError as error:
        raise ImageError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    if sniff(start) != "dicom":
        return None
    header, reading = read_header(path, force=True), Reading(str(path))
    aspect = aspect_of(header, spacing_of(header, reading), reading)
    return None if aspect == 1 else Grid((int(header.Rows), int(header.Columns)), aspect)


def age_in(ds: Dataset) -> float | None:
    """Age in years by PatientAge, or else by the dates of birth and study; None where neither tells."""
    stated = text_of(ds, "PatientAge")
    if stated:
        return years_of(stated)
    born, taken = text_of(ds, "PatientBirthDate"), text_of(ds, "StudyDate")
    if not (len(born) == len(taken) == 8 and born.isdigit() and taken.isdigit()):
        return None
    return years_of(str(int(taken[:4]) - int(born[:4]) - (taken[4:] < born[4:])))


def sex_in(ds: Dataset) -> str | None:
    """``F`` or ``M`` by PatientSex; None where it is neither."""
    return sex_of(text_of(ds, "PatientSex"))
