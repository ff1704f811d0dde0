"""Frontal radiographs (PA) with manual masks of both lungs and of the heart.

The Extended Wingspan set (Dong et al., 2018 and 2019), in a folder with the layout of
``xgem.data.sources.segmentations``.

Decisions: the heart is a separate structure, "heart", not the cardiomediastinum; a ControlNet has it if its
configuration lists it. Every image is a patient; a fixed hash assigns 20 % of them to val. Findings, age and sex are
unknown.
"""

from __future__ import annotations

from pathlib import Path

from xgem.data.manifest import Manifest, Row
from xgem.data.sources import segmentations
from xgem.data.sources.segmentations import MaskSet

SOURCE = "cardiothoracic"
SET = MaskSet(
    SOURCE,
    "masks and image {}",
    {name: name for name in ("left lung", "right lung", "heart")},
    lambda stem: f"{SOURCE}-{stem}",
)


def prepare(source_dir: Path, out: Path) -> Manifest:
    """Write the manifest of the folder to ``out``, with references to its files in place.

    Raises:
        DataError: as ``segmentations.prepare``.
    """
    return segmentations.prepare(source_dir, out, SET)


def rows_of(source: Path, root: Path) -> list[Row]:
    """The rows of a folder for a manifest in ``root``; errors as :func:`prepare`."""
    return segmentations.rows_of(source, root, SET)
