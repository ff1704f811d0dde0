"""VinDr-PCXR: frontal radiographs of children under 10 in DICOM with boxes of findings and labels of diseases.

Pham et al., "PediCXR: An open, large-scale chest radiograph dataset for interpretation of common thoracic diseases in
children", Scientific Data 2023; PhysioNet, "VinDr-PCXR", version 1.0.0, credentialed access.

A folder of ``image_labels_{train,test}.csv`` (image_id, rad_ID, a column of 0 and 1 for each of 15 diseases),
``annotations_{train,test}.csv`` (image_id, rad_ID, class_name, x_min, y_min, x_max, y_max), and ``train/`` and
``test/`` with ``<image_id>.dicom``: the layout of ``xgem.data.sources.vindr_cxr``, and read as that is, except that

* one reader looked at each image, so that no label or box is doubted;
* the 36 findings are classes of boxes alone: a label of an image is a disease of its columns, or a class of its boxes.
  Names are the published ones, with their spelling ("Brocho-pneumonia", "Diffuse aveolar opacity");
* an age of 0 is a child in its first year. Ages in months and days are fractions of a year.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from xgem.data.manifest import Manifest, Row
from xgem.data.sources import vindr_cxr
from xgem.data.sources.rows import write_manifest
from xgem.data.sources.vindr_cxr import VindrSet

SOURCE: Final = "vindr-pcxr"
LICENCE: Final = vindr_cxr.LICENCE
SET: Final = VindrSet("VinDr-PCXR", SOURCE, LICENCE, found_in_boxes=True, newborns=True)


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of a VinDr-PCXR folder to ``out``, with references to its images in place.

    Raises:
        DataError, ImageError: as ``vindr_cxr.prepare``.
    """
    root = Path(out).resolve().parent
    return write_manifest(rows_of(Path(source_dir), root), root, out)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; errors as :func:`prepare`."""
    return vindr_cxr.rows_of(source, root, SET)
