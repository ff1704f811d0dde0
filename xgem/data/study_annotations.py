"""The annotations of a study, read from its files onto a model's grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xgem.data.annotation_files import read_masks
from xgem.data.annotations import Annotation
from xgem.data.read import read_picture
from xgem.types import InputError, Study

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xgem.configs.schema import TransformConfig
    from xgem.data.annotations import Mask


def read_study(study: Study, config: TransformConfig) -> Annotation:
    """What is annotated of the study's first frontal picture, on the grid that ``config`` makes; nothing may be.

    Raises:
        InputError: a mask cannot be read, is empty, or another size than the others.
    """
    masks = {structure: _united(structure, files) for structure, files in study.masks.items()}
    size = None
    if study.boxes and not masks:
        height, width = read_picture(study.pictures["frontal"][0], voi=config.voi).pixels.shape
        size = (height, width)
    return Annotation(masks, study.boxes, study.severity, size).squared(config)


def _united(structure: str, files: Sequence[Path]) -> Mask:
    masks = [read_masks({structure: file}).masks[structure] for file in files]
    if len({mask.shape for mask in masks}) != 1:
        raise InputError(f"{files[0]}: masks of {structure!r} are of {[mask.shape for mask in masks]}, not of one size")
    return np.logical_or.reduce(masks)
