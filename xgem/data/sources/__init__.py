"""One module per public data set: each turns the published files into a manifest without copying them.

:class:`Source` is the table of them. A module has ``prepare(source_dir, out)``, which writes the manifest, and
``rows_of(source, root)``, the rows of a manifest in ``root``.
"""

from __future__ import annotations

import importlib
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from xgem.types import InputError

if TYPE_CHECKING:
    from xgem.data.rows import Row


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
        """The module of a public data set, or of ``dicom``."""
        return importlib.import_module(f"{__name__}.{self.name}")


OWN: Final = (Source.csv, Source.dicom)
"""Tables and folders of one's own, which need options."""


def rows_of_source(name: str, folder: Path, root: Path) -> list[Row]:
    """The rows of the public data set ``name`` in ``folder``, for a manifest in ``root``; masks are written there.

    Raises:
        InputError: no public data set is called so; lists them. DataError: the folder is not as its module says.
    """
    public = [source for source in Source if source not in OWN]
    if name not in public:
        raise InputError(f"unknown source {name!r}; expected one of {', '.join(public)}")
    return Source(name).module.rows_of(Path(folder), Path(root).resolve())
