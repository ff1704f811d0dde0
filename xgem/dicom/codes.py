"""Codes of what xgem draws: SNOMED CT and DICOM's own, or else xgem's private scheme ``99XGEM``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from xgem.types import OutputError

if TYPE_CHECKING:
    from pydicom.sr.coding import Code

PRIVATE_SCHEME: Final = "99XGEM"
LONGEST_NAME: Final = 64  # VR LO: CodeMeaning and SegmentLabel
ANATOMY: Final = ("91723000", "SCT", "Anatomical Structure")
ABNORMALITY: Final = ("49755003", "SCT", "Morphologically Abnormal Structure")
OBJECT: Final = ("260787004", "SCT", "Physical object")
_NAMES: Final = {
    # Structures of masks
    "left lung": ("44029006", "SCT", "Left lung"),
    "right lung": ("3341006", "SCT", "Right lung"),
    "cardiomediastinum": ("72410000", "SCT", "Mediastinum"),  # which the heart is a part of
    "airways": ("89187006", "SCT", "Airway structure"),
    "ground glass opacity": ("112120", "DCM", "Ground glass opacity"),
    "consolidation": ("95436008", "SCT", "Lung consolidation"),
    "pleural effusion": ("60046008", "SCT", "Pleural effusion"),
    "pneumothorax": ("36118008", "SCT", "Pneumothorax"),
    "device": ("49062001", "SCT", "Device"),
    # Classes of boxes
    "atelectasis": ("46621007", "SCT", "Atelectasis"),
    "cardiomegaly": ("8186001", "SCT", "Cardiomegaly"),
    "effusion": ("60046008", "SCT", "Pleural effusion"),
    "infiltrate": ("112121", "DCM", "Infiltrate"),
    "mass": ("4147007", "SCT", "Mass"),
    "nodule": ("27925004", "SCT", "Nodule"),
    "pneumonia": ("233604007", "SCT", "Pneumonia"),
}
_ANATOMICAL: Final = frozenset({"left lung", "right lung", "cardiomediastinum", "airways"})


def code_of(name: str) -> Code:
    """The code of a structure or of a class of boxes; one that a model added is its own name in ``99XGEM``.

    Raises:
        OutputError: the name is too long for a DICOM attribute.
    """
    from pydicom.sr.coding import Code

    if len(name) > LONGEST_NAME:
        raise OutputError(f"{name!r}: {len(name)} characters, DICOM names at most {LONGEST_NAME}; save as png")
    return Code(*_NAMES.get(name, (name, PRIVATE_SCHEME, name)))


def category_of(structure: str) -> Code:
    """The category of a segment: anatomy, an abnormality, or a physical object (CID 7150)."""
    from pydicom.sr.coding import Code

    return Code(*(ANATOMY if structure in _ANATOMICAL else OBJECT if structure == "device" else ABNORMALITY))
