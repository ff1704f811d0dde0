"""Masks of DICOM segmentations, and boxes of the structured reports that xgem writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from xgem.data.dicom_private import CONTENT, text_in
from xgem.data.headers import read_header
from xgem.types import InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    Mask = NDArray[np.bool_]

_SEGMENTATIONS: Final = ("1.2.840.10008.5.1.4.1.1.66.4", "1.2.840.10008.5.1.4.1.1.66.7")
"""SOP classes of segmentations, the second with labels as pixels."""
_SAME_PIXEL: Final = 1e-3  # coordinates in a report are of single precision


def read_segmentation(path: Path) -> dict[str, Mask]:
    """Masks (h, w) of a segmentation of one image, by the label of their segment.

    Raises:
        InputError: damaged, no segmentation, of several images, fractions, or two segments of one label.
    """
    ds = read_header(path, force=True)
    if ds.get("SOPClassUID") not in _SEGMENTATIONS:
        found = getattr(ds.get("SOPClassUID"), "name", "unknown class")
        raise InputError(f"{path}: DICOM of {found}; expected a segmentation (SEG)")
    try:
        labels = {int(item.SegmentNumber): str(item.SegmentLabel) for item in ds.SegmentSequence}
        frames = np.asarray(ds.pixel_array).reshape(-1, ds.Rows, ds.Columns)  # (n, h, w)
        numbers = _segment_numbers(ds, len(frames))
        largest = int(ds.get("MaximumFractionalValue", 1))
    # The library raises whatever the damage leads to
    except Exception as error:
        raise InputError(f"{path}: damaged segmentation ({' '.join(str(error).split())[:120]})") from error
    if len(set(labels.values())) < len(labels):
        raise InputError(f"{path}: two segments are named alike; expected a label of its own for each")
    if numbers is None:
        if len(frames) > 1:
            raise InputError(f"{path}: {len(frames)} frames; expected masks of one image")
        return {label: frames[0] == number for number, label in labels.items() if number}  # 0 is the background
    if len(set(numbers)) < len(numbers):
        raise InputError(f"{path}: {len(frames)} frames of {len(labels)} segments; expected masks of one image")
    if not np.isin(frames, (0, largest)).all():
        raise InputError(f"{path}: a segmentation of fractions; expected a binary one")
    return {labels[number]: frame != 0 for number, frame in zip(numbers, frames, strict=True)}


def read_box_report(path: Path) -> Any:
    """Boxes in a structured report that xgem wrote, as COCO.

    Raises:
        InputError: damaged, another object, or regions that were changed by other software.
    """
    ds = read_header(path, force=True)
    text = text_in(ds, CONTENT)
    try:
        coco = json.loads(text or "")
        written = sorted((x, y, x + w, y + h) for x, y, w, h in (one["bbox"] for one in coco["annotations"]))
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path}: DICOM without boxes as xgem writes them; expected its .boxes.dcm, or COCO") from None
    shown = sorted(_regions(ds))
    if len(shown) != len(written) or not np.allclose(shown, written, rtol=0, atol=_SAME_PIXEL):
        raise InputError(f"{path}: its regions are not those that xgem wrote; give the changed boxes as COCO")
    return coco


def _segment_numbers(ds: Dataset, frames: int) -> list[int] | None:
    """The segment of each frame; None where pixels are numbers of segments."""
    if ds.SegmentationType == "LABELMAP":
        return None
    shared = ds.SharedFunctionalGroupsSequence[0]
    groups = ds.get("PerFrameFunctionalGroupsSequence") or [shared] * frames
    identified = [item if "SegmentIdentificationSequence" in item else shared for item in groups]
    return [int(item.SegmentIdentificationSequence[0].ReferencedSegmentNumber) for item in identified]


def _regions(item: Dataset) -> Iterator[tuple[float, ...]]:
    """The bounds (left, top, right, bottom) in pixels of the regions in a content tree."""
    if item.get("ValueType") == "SCOORD":
        points = np.asarray(item.GraphicData, dtype=float).reshape(-1, 2)
        yield (*points.min(0), *points.max(0))
    for child in item.get("ContentSequence") or ():
        yield from _regions(child)
