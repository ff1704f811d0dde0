"""Frontal radiographs (PA) with manual masks of both lungs and of the heart.

The Extended Wingspan set (Dong et al., 2018 and 2019), in a folder with the layout of
``xgem.data.sources.segmentations``.

Decisions: the heart is a separate structure, "heart", not the cardiomediastinum; a ControlNet has it if its
configuration lists it. Every image is a patient; a fixed hash assigns 20 % of them to val. Findings, age and sex are
unknown.
"""

from __future__ import annotations

from pathlib import Path

from xgem.data.manifest import Manifest
from xgem.data.sources.segmentations import MaskSet
from xgem.data.sources.segmentations import prepare as prepare_masks

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
    return prepare_masks(source_dir, out, SET)
