"""One module per public data set: each turns the published files into a manifest without copying them.

:class:`Source` is the table of them. A module has ``prepare(source_dir, out)``, which writes the manifest, and
``rows_of(source, root)``, the rows of a manifest in ``root``.
"""

from __future__ import annotations

import importlib
from enum import StrEnum
from typing import Any, Final


class Source(StrEnum):
    """Data sets that xgem reads, by the names of the command line; a member's name is that of its module."""

    openi = "openi"
    nih = "nih"
    nih_boxes = "nih-boxes"
    segmentations = "segmentations"
    cardiothoracic = "cardiothoracic"
    severity = "severity"
    covid = "covid"
    hannover = "hannover"
    roco = "roco"
    mimic_cxr = "mimic-cxr"
    chexpert = "chexpert"
    padchest = "padchest"
    vindr_cxr = "vindr-cxr"
    vindr_pcxr = "vindr-pcxr"
    brax = "brax"
    bimcv_covid19 = "bimcv-covid19"
    ranzcr_clip = "ranzcr-clip"
    siim_acr = "siim-acr"
    vindr_ribcxr = "vindr-ribcxr"
    object_cxr = "object-cxr"
    chestx_det = "chestx-det"
    ralo = "ralo"
    candid_ptx = "candid-ptx"
    medfmc_chestdr = "medfmc-chestdr"
    csv = "csv"
    dicom = "dicom"

    @property
    def module(self) -> Any:
        """The module of one of :data:`FOLDERS`."""
        return importlib.import_module(f"{__name__}.{self.name}")


FOLDERS: Final = tuple(source for source in Source if source is not Source.csv)
"""Those that are read from a folder, each by its module; a table of one's own needs to be told what it holds."""
