"""Segmentations as other software writes them, and reports whose regions were changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from highdicom.seg import Segmentation, SegmentDescription
from highdicom.sr import CodedConcept
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ComputedRadiographyImageStorage

from xgem.data.annotation_files import read_boxes, read_masks
from xgem.types import InputError

LABELS = ("Left_Lung", "Ground Glass Opacities")


def source(side: int = 48) -> Dataset:
    """The header of an image that a segmentation refers to."""
    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = ComputedRadiographyImageStorage, "1.2.3.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = "1.2.3", "1.2.3.9", "CR"
    ds.Rows = ds.Columns = side
    for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(ds, keyword, "")
    ds.StudyDate = ds.StudyTime = ds.ReferringPhysicianName = None
    return ds


def drawn() -> np.ndarray:
    pixels = np.zeros((1, 48, 48, 2), np.uint8)
    pixels[0, 5:30, 4:20, 0] = 1
    pixels[0, 31:40, 25:40, 1] = 1
    return pixels


def write(path: Path, kind: str = "BINARY", pixels: Any = None, labels: Any = LABELS) -> Path:
    tissue = CodedConcept.from_code(codes.SCT.Tissue)
    segments = [SegmentDescription(n, label, tissue, tissue, "MANUAL") for n, label in enumerate(labels, 1)]
    Segmentation(
        [source()],
        drawn() if pixels is None else pixels,
        kind,
        segments,
        series_instance_uid="1.2.3.10",
        series_number=1,
        sop_instance_uid="1.2.3.11",
        instance_number=1,
        manufacturer="other",
        manufacturer_model_name="other",
        software_versions="1",
        device_serial_number="1",
        omit_empty_frames=False,
        max_fractional_value=200,
    ).save_as(path)
    return path


@pytest.mark.parametrize("kind", ["BINARY", "FRACTIONAL", "LABELMAP"])
def test_segments_are_named_by_their_labels(tmp_path: Path, kind: str) -> None:
    pixels = drawn().astype(np.float32) if kind == "FRACTIONAL" else drawn()
    file = write(tmp_path / "s.dcm", kind, pixels)
    masks = read_masks(file).masks
    assert list(masks) == ["left lung", "ground glass opacity"]
    for index, mask in enumerate(masks.values()):
        assert np.array_equal(mask, drawn()[0, ..., index] > 0)
    only = read_masks({"left lung": str(file)}).masks
    assert list(only) == ["left lung"]


def test_one_segment_whose_number_is_shared(tmp_path: Path) -> None:
    file = write(tmp_path / "s.dcm", pixels=drawn()[..., :1], labels=LABELS[:1])
    assert np.array_equal(read_masks(file).masks["left lung"], drawn()[0, ..., 0] > 0)


def test_segmentations_that_are_no_masks_of_one_image(tmp_path: Path) -> None:
    smooth = drawn() * np.float32(0.5)
    empty = drawn() * np.array([1, 0], np.uint8)
    refused: list[tuple[str, dict[str, Any], str]] = [
        ("a", {"kind": "FRACTIONAL", "pixels": smooth}, "of fractions; expected a binary one"),
        ("c", {"labels": ("lung", "lung")}, "named alike"),
        ("d", {"pixels": empty}, "is empty"),
    ]
    for name, options, message in refused:
        with pytest.raises(InputError, match=message):
            read_masks(write(tmp_path / f"{name}.dcm", **options))


def test_segmentations_of_several_images(tmp_path: Path) -> None:
    ds = pydicom.dcmread(write(tmp_path / "s.dcm"))
    ds.PerFrameFunctionalGroupsSequence[1].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 1
    ds.save_as(tmp_path / "s.dcm")
    with pytest.raises(InputError, match="2 frames of 2 segments; expected masks of one image"):
        read_masks(tmp_path / "s.dcm")
    ds = pydicom.dcmread(write(tmp_path / "l.dcm", "LABELMAP"))
    ds.NumberOfFrames, ds.PixelData = 2, ds.PixelData * 2
    ds.save_as(tmp_path / "l.dcm")
    with pytest.raises(InputError, match="2 frames; expected masks of one image"):
        read_masks(tmp_path / "l.dcm")


def test_other_objects_are_refused(tmp_path: Path, write_dicom: Any, chest: Any) -> None:
    image, file = write_dicom(chest()), write(tmp_path / "s.dcm")
    with pytest.raises(InputError, match="Computed Radiography Image Storage; expected a segmentation"):
        read_masks(image)
    for other in (image, file):
        with pytest.raises(InputError, match="without boxes as xgem writes them"):
            read_boxes(other)
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(InputError, match="damaged segmentation"):
        read_masks(file)
    with pytest.raises(InputError, match="shows left lung, ground glass opacity; expected device"):
        read_masks({"device": write(tmp_path / "t.dcm")})
