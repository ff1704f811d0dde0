"""Masks as a DICOM segmentation of the generated radiograph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from xgem.dicom.codes import category_of, code_of

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydicom.dataset import Dataset

    from xgem.dicom.identity import Identity


def segmentation(masks: Mapping[str, NDArray[np.bool_]], image: Dataset, identity: Identity) -> Dataset:
    """Masks (h, w) bool by structure as a binary SEG (PS3.3, A.51) with a segment for each; they may overlap."""
    from highdicom.seg import Segmentation, SegmentDescription

    name = f"{identity.metadata['output']}.mask"
    segments = [
        SegmentDescription(index, structure, category_of(structure), code_of(structure), "MANUAL")
        for index, structure in enumerate(masks, 1)
    ]
    pixels = np.stack(list(masks.values()), axis=-1)[None].astype(np.uint8)  # (1, h, w, segments)
    ds = Segmentation(
        [image],
        pixels,
        "BINARY",
        segments,
        series_instance_uid=image.SeriesInstanceUID,
        series_number=1,
        sop_instance_uid=image.SOPInstanceUID,
        instance_number=1,
        manufacturer="xgem",
        manufacturer_model_name="xgem",
        software_versions="0",
        device_serial_number="0",
        content_label="MASKS",
        content_description="Masks that the synthetic radiograph was generated from",
        omit_empty_frames=False,
    )
    organization = identity.own_uid(name, "dimensions")
    ds.DimensionOrganizationSequence[0].DimensionOrganizationUID = organization
    for index in ds.DimensionIndexSequence:
        index.DimensionOrganizationUID = organization
    ds.PatientOrientation = image.PatientOrientation
    identity.stamp(ds, name, pixels.tobytes() + "\0".join(masks).encode(), role=1)
    return ds
