"""The registry of modalities. A new one is one file in this folder and one line here; a view only needs its line."""

from __future__ import annotations

from xgem.labels.views import VIEWS
from xgem.modalities.annotation import Boxes, Demographics, Masks, Severity
from xgem.modalities.base import Modality
from xgem.modalities.cxr import Radiograph
from xgem.modalities.report import Report
from xgem.types import InputError

MODALITIES: dict[str, Modality] = {
    modality.name: modality
    for modality in (
        *map(Radiograph, VIEWS),
        Report(),
        Masks(),
        Boxes(),
        Severity(),
        Demographics(),
    )
}


def get_modality(name: str) -> Modality:
    """The modality called ``name``; InputError lists the known ones."""
    if name not in MODALITIES:
        raise InputError(f"unknown modality {name!r}: expected one of {', '.join(MODALITIES)}")
    return MODALITIES[name]


__all__ = ["MODALITIES", "Modality", "get_modality"]
