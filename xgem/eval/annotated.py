"""Annotations of studies on the model's square grid, as the control measures ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xgem.data.annotations import Box
from xgem.data.read import read_picture
from xgem.data.transforms import pad_square, resize
from xgem.types import ImageError, Study

if TYPE_CHECKING:
    from xgem.configs.schema import TransformConfig

Mask = NDArray[np.bool_]
Masks = Mapping[str, Mask]

UNITED: Final[dict[str, tuple[str, ...]]] = {"lungs": ("left lung", "right lung"), "heart": ("cardiomediastinum",)}
"""What is judged as one: a structure's name in the measures, and the annotated ones that it is made of."""


def load_masks(study: Study, transform: TransformConfig) -> dict[str, Mask]:
    """The study's masks by structure, (s, s), padded and resized as ``to_square`` does with its picture.

    A pixel belongs to a mask if at least half of it is covered; of a mask too thin for that, what is covered most.

    Raises:
        ImageError: a mask cannot be read, is empty, or two of one structure differ in size.
    """
    return {name: _on_grid(_outlined(files, name), transform) for name, files in study.masks.items()}


def _outlined(files: Sequence[Path], name: str) -> Mask:
    masks: list[Mask] = []
    for file in files:
        try:
            with Image.open(file) as image:
                masks.append(np.asarray(image.convert("L")) >= 128)
        except OSError as error:
            raise ImageError(f"{file}: the mask cannot be read ({error}); correct the manifest") from None
    if len({mask.shape for mask in masks}) != 1:
        raise ImageError(f"{files[0]}: masks of {name!r} are of {[mask.shape for mask in masks]}: expected one size")
    found = np.logical_or.reduce(masks)
    if not found.any():
        raise ImageError(f"{files[0]}: the mask of {name!r} is empty: leave out what the picture does not show")
    return found


def _on_grid(mask: Mask, transform: TransformConfig) -> Mask:
    pixels = mask.astype(np.float32)
    covered = resize(pad_square(pixels) if transform.pad else pixels, (transform.size, transform.size), "area")
    return covered >= min(0.5, float(covered.max())) - 1e-6


def load_boxes(study: Study, transform: TransformConfig) -> tuple[Box, ...]:
    """The boxes in shares of the square picture that ``to_square`` makes of the study's frontal one."""
    if not transform.pad or not study.boxes:
        return study.boxes
    height, width = read_picture(study.pictures["frontal"][0], voi=transform.voi).pixels.shape
    side = max(height, width)
    top, left = (side - height) // 2, (side - width) // 2
    return tuple(
        Box(
            box.label,
            (box.x * width + left) / side,
            (box.y * height + top) / side,
            box.w * width / side,
            box.h * height / side,
        )
        for box in study.boxes
    )


def united(masks: Masks) -> dict[str, Mask]:
    """The masks as they are judged: lungs as one (where both are outlined), the rest as they are."""
    parts = {part for names in UNITED.values() for part in names}
    found = {
        name: np.logical_or.reduce([masks[part] for part in names])
        for name, names in UNITED.items()
        if all(part in masks for part in names)
    }
    return found | {name: mask for name, mask in masks.items() if name not in parts}


@dataclass(frozen=True)
class Outlines:
    """Masks of n studies: ``masks`` (n, structures, s, s), all False where ``known`` (n, structures) is."""

    structures: tuple[str, ...]
    masks: Mask
    known: Mask

    @classmethod
    def stacked(cls, masks: Sequence[Masks], structures: Sequence[str], size: int) -> Outlines:
        """Of the named structures, which a study may lack."""
        nothing = np.zeros((size, size), dtype=bool)
        stacked = np.array([[one.get(name, nothing) for name in structures] for one in masks], dtype=bool)
        known = np.array([[name in one for name in structures] for one in masks], dtype=bool)
        return cls(tuple(structures), stacked.reshape(len(masks), len(structures), size, size), known)
