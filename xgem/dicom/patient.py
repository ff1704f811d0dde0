"""The patient of a DICOM input, for a sample that is to be kept with it; nothing is taken over unless asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from xgem.data.headers import is_dicom, read_header, text_of
from xgem.types import InputError

KEPT: Final = (
    *("PatientName", "PatientID", "IssuerOfPatientID", "TypeOfPatientID", "PatientBirthDate", "PatientBirthTime"),
    *("PatientSex", "PatientIdentityRemoved", "DeidentificationMethod"),
)
"""Attributes of the patient module that are kept."""


def patient_of(files: Iterable[Path]) -> dict[str, str]:
    """Attributes of the one patient of those of ``files`` that are DICOM, by keyword.

    Raises:
        InputError: none is DICOM, or they are of several patients.
    """
    found: dict[str, dict[str, str]] = {}
    for file in filter(is_dicom, files):
        header = read_header(file, force=True)
        values = {keyword: text_of(header, keyword) for keyword in KEPT}
        found[file.name] = {keyword: value for keyword, value in values.items() if value}
    if not found:
        raise InputError("keep_patient: no input is a DICOM file, so there is no patient to keep; leave it out")
    (first, patient), *others = found.items()
    for name, other in others:
        if other != patient:
            raise InputError(f"keep_patient: {first} and {name} are of different patients; give images of one")
    return patient
