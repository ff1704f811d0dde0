"""What conditions a radiograph besides prompts: masks, boxes, a severity score, demographics."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xgem.checkpoints.locate import embedded_names
from xgem.configs.preset import Preset
from xgem.data.annotation_files import coco, read_boxes, read_masks, read_severity, write_labels
from xgem.data.annotations import STRUCTURES, Annotation, Box, check_known
from xgem.data.captions import preface
from xgem.data.demographics import read_demographics
from xgem.data.headers import Grid
from xgem.data.study import Study
from xgem.modalities.base import InputOnly
from xgem.types import InputError, Prompt

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

    from xgem.dicom.identity import Identity

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Placed:
    """The ``value`` of masks or boxes that may be drawn on the stored pixels of an image, which are not square."""

    value: Any
    grid: Grid


class _Spatial(InputOnly):
    """A modality that steers a ControlNet: its ``Prompt.value`` is an annotation on the preset's grid."""

    def annotation(self, value: Annotation) -> Annotation:
        return value

    def placed(self, value: Any, grid: Grid | None) -> Any:
        return value if grid is None else _Placed(value, grid)

    @staticmethod
    def given(value: Any, read: Callable[[Any], Annotation]) -> tuple[Annotation, Any]:
        """The annotation, and the value itself; of the same size as the image's stored pixels, it has their aspect.

        Boxes that do not say of which size their image is are of the image.
        """
        if not isinstance(value, _Placed):
            return read(value), value
        given = read(value.value)
        if given.size in (None, value.grid.size):
            given = replace(given, size=value.grid.size, aspect=value.grid.aspect)
        return given, value.value

    @staticmethod
    def squared(given: Annotation, preset: Preset) -> Annotation:
        """On the preset's grid; InputError where it shows what the preset's ControlNets do not know."""
        if preset.vocabulary is not None:
            check_known(given, preset.vocabulary)
        return given.squared(preset.transform)


class Masks(_Spatial):
    """Masks by structure: a mapping, a label image, or one binary image (``annotation_files.read_masks``)."""

    name = "mask"
    suffix = ".mask.png"

    def of_study(self, study: Study, sections: Sequence[str]) -> Mapping[str, tuple[Path, ...]] | None:
        """The files of each structure."""
        del sections
        return study.masks or None

    def read(self, value: Any, preset: Preset, *, allow_any: bool = False) -> Prompt:
        del allow_any
        known = preset.vocabulary
        structures = STRUCTURES if known is None else known.structures
        given, value = self.given(value, lambda one: read_masks(one, structures))
        squared = self.squared(given, preset)
        notes = () if given.size == squared.size else (_resized(given, squared, preset.transform.pad),)
        if _middle(given.masks.get("left lung")) < _middle(given.masks.get("right lung")):
            notes = (*notes, "left lung lies left of right lung: sides are the patient's, whose left is on the right")
        origins = map(_origin, value.values() if isinstance(value, Mapping) else [value])
        return Prompt(squared, given.sha256, ", ".join(dict.fromkeys(origins)), notes)

    def write(self, output: Annotation, directory: Path, stem: str, metadata: Mapping[str, Any]) -> Path:
        """A PNG of labels that it names itself; warns where masks overlap, because the later one hides the other."""
        del metadata
        path = directory / f"{stem}{self.suffix}"
        for under, over in write_labels(output.masks, path):
            logger.warning("%s: %s hides a part of %s", path.name, over, under)
        return path

    def to_dicom(self, output: Annotation, identity: Identity, image: Dataset | None = None) -> Dataset | None:
        """A segmentation of the image, with all of each mask where masks overlap."""
        from xgem.dicom.segmentations import segmentation

        return None if image is None else segmentation(output.masks, image, identity)


class Boxes(_Spatial):
    """Boxes by class: a list in shares of the image, COCO, or a file of either (``annotation_files.read_boxes``)."""

    name = "boxes"
    suffix = ".boxes.json"

    def of_study(self, study: Study, sections: Sequence[str]) -> tuple[Box, ...] | None:
        del sections
        return study.boxes or None

    def read(self, value: Any, preset: Preset, *, allow_any: bool = False) -> Prompt:
        del allow_any
        given, value = self.given(value, read_boxes)
        height, width = given.size or (1, 1)
        how = "padded" if preset.transform.pad else "stretched"
        notes = () if height == width else (f"boxes of an image of {height} x {width}, which was {how} to a square",)
        return Prompt(self.squared(given, preset), given.sha256, _origin(value), notes)

    def write(self, output: Annotation, directory: Path, stem: str, metadata: Mapping[str, Any]) -> Path:
        """COCO, for the image ``<stem>.png`` on whose grid the annotation is."""
        del metadata
        path = directory / f"{stem}{self.suffix}"
        path.write_text(json.dumps(self._coco(output, f"{stem}.png"), indent=2) + "\n", encoding="utf-8")
        return path

    def to_dicom(self, output: Annotation, identity: Identity, image: Dataset | None = None) -> Dataset | None:
        """A structured report of regions of the image."""
        from xgem.dicom.documents import box_report

        if image is None:
            return None
        return box_report(output.boxes, self._coco(output, image.SOPInstanceUID), image, identity)

    @staticmethod
    def _coco(annotation: Annotation, file_name: str) -> dict[str, Any]:
        if annotation.size is None:
            raise InputError("boxes: the image's size is unknown; make the annotation square first (squared)")
        height, width = annotation.size
        return coco(annotation.boxes, width, height, file_name)


class Severity(_Spatial):
    """A Brixia score, 0 to 18: drawn as a bar, and written in front of the text."""

    name = "severity"

    def placed(self, value: Any, grid: Grid | None) -> Any:
        del grid
        return value

    def of_study(self, study: Study, sections: Sequence[str]) -> float | None:
        del sections
        return study.severity

    def read(self, value: Any, preset: Preset, *, allow_any: bool = False) -> Prompt:
        del allow_any
        given = read_severity(value)
        return Prompt(self.squared(given, preset), given.sha256, "text", text=f"{given.severity:g}")

    def preface(self, value: Annotation) -> dict[str, Any]:
        return {"severity": value.severity}


class Demographics(InputOnly):
    """Sex, age and race, as far as known: written in front of the text."""

    name = "demographics"

    def of_study(self, study: Study, sections: Sequence[str]) -> dict[str, Any] | None:
        """Sex, age and race, as far as known."""
        del sections
        known = {"sex": study.sex, "age": study.age, "race": study.race}
        return {name: value for name, value in known.items() if value is not None} or None

    def read(self, value: Any, preset: Preset, *, allow_any: bool = False) -> Prompt:
        del allow_any
        known = read_demographics(value)
        if "race" in known and preset.name in embedded_names():
            _warn_of_race(preset.name)
        text = ", ".join(f"{name}:{field}" for name, field in known.items())
        return Prompt(known, hashlib.sha256(preface(**known).encode("utf-8", "replace")).hexdigest(), "text", text=text)

    def preface(self, value: Mapping[str, Any]) -> dict[str, Any]:
        return dict(value)


@cache
def _warn_of_race(model: str) -> None:
    """Once per model and process."""
    logger.warning("race: %s was trained on data without it, so its effect is arbitrary; leave it out", model)


def _origin(value: Any) -> str:
    """The name of a file; ``"text"`` for what JSON can hold, ``"array"`` for the rest."""
    if isinstance(value, str | os.PathLike):
        return Path(value).name
    return "text" if isinstance(value, Mapping | list | tuple) else "array"


def _middle(mask: Any) -> float:
    """The mean column of a mask; NaN, which is never smaller nor larger, where there is none."""
    return math.nan if mask is None else float(np.nonzero(mask)[1].mean())


def _resized(given: Annotation, squared: Annotation, pad: bool) -> str:
    assert given.size is not None
    assert squared.size is not None
    (height, width), (side, _) = given.size, squared.size
    how = "" if height == width else f" ({'padded' if pad else 'stretched'} to a square)"
    return f"mask resized from {height} x {width} to {side} x {side}{how}"
