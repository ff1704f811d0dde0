"""The annotations of a study, read from its files onto a model's grid."""

from __future__ import annotations

from typing import TYPE_CHECKING

from xgem.data.annotation_files import read_masks
from xgem.data.annotations import Annotation
from xgem.data.read import read_picture
from xgem.types import Study

if TYPE_CHECKING:
    from xgem.configs.schema import TransformConfig


def read_study(study: Study, config: TransformConfig) -> Annotation | None:
    """What is annotated of the study's first frontal picture, on the grid that ``config`` makes; None where nothing is.

    Several masks of one structure are united.

    Raises:
        InputError: a mask cannot be read, or another size than its picture's.
    """
    masks = {}
    for structure, paths in study.masks.items():
        parts = [read_masks({structure: path}).masks[structure] for path in paths]
        masks[structure] = parts[0]
        for part in parts[1:]:
            masks[structure] = masks[structure] | part
    size = None
    if study.boxes and not masks:
        size = read_picture(study.pictures["frontal"][0]).pixels.shape
    annotation = Annotation(masks, study.boxes, study.severity, size)
    if not (masks or study.boxes or study.severity is not None):
        return None
    return annotation.squared(config)
