"""Frontal radiographs (PA) with hand-drawn masks of both lungs and of the heart.

The Extended Wingspan set (Dong et al., 2018 and 2019), in a folder of the same form as that of
``xgem.data.sources.segmentations``.

Decisions: the heart is a structure of its own, "heart", and not the cardiomediastinum; a ControlNet knows it where its
configuration lists it. Every image is a patient; a fixed hash gives 20 % of them to val. Findings, age and sex are
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
    """Make the manifest of the folder, refer to its files where they are, write it to ``out``.

    Raises:
        DataError: as ``segmentations.prepare``.
    """
    return prepare_masks(source_dir, out, SET)
