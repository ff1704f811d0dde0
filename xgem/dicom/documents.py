"""Structured reports: a generated report as Basic Text SR, boxes as Comprehensive SR with regions of the image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from xgem.data.sections import joined_sections
from xgem.dicom.codes import code_of
from xgem.dicom.identity import uid_of

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from xgem.data.annotations import Box
    from xgem.dicom.identity import Identity


def text_report(text: str, identity: Identity) -> Dataset:
    """A report as Basic Text SR (PS3.3, A.35.1; PS3.16, TID 2000): findings and impression, those that it has.

    The text as generated is in the private block; in the tree its headings are containers.
    """
    from highdicom.sr import ContainerContentItem, ContentSequence, TextContentItem
    from pydicom.dataset import Dataset
    from pydicom.sr.codedict import codes
    from pydicom.uid import BasicTextSRStorage

    findings, impression = joined_sections(text)
    sections = (
        (codes.LN.Findings, codes.DCM.Finding, findings),
        (codes.LN.Impressions, codes.DCM.Impression, impression),
    )
    items: list[Any] = [*_language(), *_observer_context(identity)]
    for heading, concept, words in sections:
        if words:
            section = ContainerContentItem(name=heading, is_content_continuous=False, relationship_type="CONTAINS")
            section.ContentSequence = ContentSequence([TextContentItem(concept, words, relationship_type="CONTAINS")])
            items.append(section)
    root = ContainerContentItem(codes.LN.DiagnosticImagingReport, is_content_continuous=False, template_id="2000")
    root.ContentSequence = ContentSequence(items)
    ds = Dataset()
    ds.SOPClassUID, ds.Modality = BasicTextSRStorage, "SR"
    ds.update(root)
    ds.CompletionFlag, ds.VerificationFlag = "COMPLETE", "UNVERIFIED"
    ds.PerformedProcedureCodeSequence = ds.ReferencedPerformedProcedureStepSequence = []
    identity.stamp(ds, str(identity.metadata["output"]), text.encode(), content=text)
    return ds


def box_report(boxes: Sequence[Box], coco: dict[str, Any], image: Dataset, identity: Identity) -> Dataset:
    """Boxes as Comprehensive SR (PS3.16, TID 1500): for each a region of ``image`` with the class as its finding.

    Coordinates are pixels from the upper left corner of the image (PS3.3, C.18.6.1.2), in single precision; ``coco``,
    in the private block, has them exactly.
    """
    from highdicom import sr
    from pydicom.sr.codedict import codes

    name = f"{identity.metadata['output']}.boxes"
    source = sr.SourceImageForRegion(image.SOPClassUID, image.SOPInstanceUID)
    groups: list[Any] = []
    for index, (box, found) in enumerate(zip(boxes, coco["annotations"], strict=True), 1):
        x, y, width, height = found["bbox"]
        corners = [(x, y), (x + width, y), (x + width, y + height), (x, y + height), (x, y)]
        groups.append(
            sr.PlanarROIMeasurementsAndQualitativeEvaluations(
                sr.TrackingIdentifier(identity.own_uid(name, str(index)), f"{box.label} {index}"),
                sr.ImageRegion("POLYLINE", np.array(corners), source),
                finding_type=code_of(box.label),
                geometric_purpose=codes.SCT.BoundedBy,
            )
        )
    report = sr.MeasurementReport(
        sr.ObservationContext(_observer_context(identity)),
        procedure_reported=codes.LN.DiagnosticImagingReport,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
        language_of_content_item_and_descendants=sr.LanguageOfContentItemAndDescendants(_english()),
    )
    ds = sr.ComprehensiveSR([image], report[0], image.SeriesInstanceUID, 1, image.SOPInstanceUID, 1, is_complete=True)
    text = json.dumps(coco)
    identity.stamp(ds, name, text.encode(), role=2, content=text)
    return ds


def _english() -> Any:
    from pydicom.sr.coding import Code

    return Code("en", "RFC5646", "English")


def _language() -> Any:
    from highdicom.sr import LanguageOfContentItemAndDescendants

    return LanguageOfContentItemAndDescendants(_english())


def _observer_context(identity: Identity) -> Any:
    """The device that observed: xgem with the checkpoint (PS3.16, TID 1002)."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    checkpoint = identity.metadata["checkpoint"]
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=uid_of("device", str(checkpoint["hash"])),
        name="xgem",
        manufacturer_name="xgem",
        model_name=str(checkpoint["name"]),
        serial_number=str(checkpoint["hash"]),
    )
    return sr.ObserverContext(codes.DCM.Device, device)
