"""What all DICOM objects of a sample say of themselves: UIDs, patient, study, series, equipment.

Nothing in an object depends on when or where it was written: UIDs are ``2.25.`` and 128 bits of a SHA-256, of what was
requested for the study, of all of the object's content for instance and series; dates are :data:`DATE`. So one request
gives equal bytes, and objects of equal UID have equal content.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from xgem.data.dicom_private import CONTENT, METADATA, put_text
from xgem.utils.hashing import canonical

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

DATE: Final = "20000101"
"""Date of every study, series and content: when a sample is made does not change it."""
TIME: Final = "000000"
_PATIENT_NAME: Final = "SYNTHETIC^XGEM"
_DATED: Final = ("Study", "Series", "Content", "InstanceCreation")


def uid_of(*parts: str) -> str:
    """``2.25.`` and the first 128 bits of the SHA-256 of ``parts`` (PS3.5, B.2)."""
    text = "\0".join(parts)
    return f"2.25.{int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], 'big')}"


@dataclass(frozen=True)
class Identity:
    """One sample as DICOM knows it.

    ``metadata`` are all of the sample's (``Generation.sample_metadata``); ``patient`` are attributes of the patient
    module by keyword, where those of an input are kept.
    """

    metadata: Mapping[str, Any]
    patient: Mapping[str, Any] = field(default_factory=dict[str, Any])

    @property
    def study(self) -> str:
        """What the samples of one index and request share, as a hash."""
        request = str(self.metadata.get("request") or canonical(self.metadata))  # files of before lack the request
        of = {"request": request, "sample": self.metadata.get("sample", 0), "patient": self.patient}
        return hashlib.sha256(canonical(of).encode()).hexdigest()

    @property
    def study_uid(self) -> str:
        return uid_of("study", self.study)

    @property
    def pixel_spacing(self) -> tuple[float, float] | None:
        """Row and column spacing in mm of an output that started from an image of known spacing; else None.

        At strength 1 nothing of that image is left, and its spacing is not that of the output.
        """
        image = self.metadata.get("image", {}).get(self.metadata["output"], {})
        spacing = image.get("pixel_spacing")
        return None if spacing is None or self.metadata.get("strength") == 1 else (spacing[0], spacing[1])

    def own_uid(self, *parts: str) -> str:
        """A UID of something within the study."""
        return uid_of(self.study, *parts)

    def stamp(self, ds: Dataset, name: str, payload: bytes, *, role: int = 0, content: str | None = None) -> None:
        """Complete ``ds`` in place, also over what a library has set.

        Args:
            ds: an object with ``SOPClassUID``.
            name: what it is among the sample's: ``frontal``, ``frontal.mask``.
            payload: what decides, with the metadata, what the object contains.
            role: 0 for an output, another number for each kind of annotation: the series' last digit.
            content: kept as text in the private block, beside the metadata.
        """
        metadata = self.metadata
        made = hashlib.sha256(payload + canonical(metadata).encode()).hexdigest()
        ds.SpecificCharacterSet = "ISO_IR 192"
        ds.SOPInstanceUID = self.own_uid("instance", name, made)
        ds.SyntheticData = "YES"
        for kind in _DATED:
            setattr(ds, f"{kind}Date", DATE)
            setattr(ds, f"{kind}Time", TIME)
        for item in ds.get("ContributingEquipmentSequence", ()):
            item.ContributionDateTime = DATE + TIME
        # Patient
        ds.PatientName, ds.PatientID = _PATIENT_NAME, f"SYNTHETIC-{self.study[:12].upper()}"
        ds.PatientBirthDate = ds.PatientSex = None
        for keyword, value in self.patient.items():
            setattr(ds, keyword, value)
        # Study and series
        ds.StudyInstanceUID, ds.StudyDescription = self.study_uid, "Synthetic chest radiographs, not for diagnosis"
        ds.StudyID, ds.AccessionNumber, ds.ReferringPhysicianName = self.study[:16], None, None
        position = list(metadata["outputs"]).index(metadata["output"]) + 1
        ds.SeriesInstanceUID, ds.SeriesNumber = self.own_uid("series", name, made), 10 * position + role
        ds.SeriesDescription = f"Synthetic {name.replace('.', ' ')}"
        ds.InstanceNumber = 1
        # Equipment
        ds.Manufacturer, ds.ManufacturerModelName = "xgem", str(metadata["checkpoint"]["name"])[:64]
        ds.DeviceSerialNumber = str(metadata["checkpoint"]["hash"])[:64]
        ds.SoftwareVersions = str(metadata["xgem"])
        put_text(ds, METADATA, json.dumps(dict(metadata), ensure_ascii=False))
        if content is not None:
            put_text(ds, CONTENT, content)
        _set_file_meta(ds)


def _set_file_meta(ds: Dataset) -> None:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    ds.file_meta = FileMetaDataset()
    ds.file_meta.MediaStorageSOPClassUID = ds.SOPClassUID
    ds.file_meta.MediaStorageSOPInstanceUID = ds.SOPInstanceUID
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.file_meta.ImplementationClassUID = UID(uid_of("xgem"))
    ds.file_meta.ImplementationVersionName = "XGEM"
