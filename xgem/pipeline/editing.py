"""Editing a part of an image: what may change is sampled, the rest stays as it was (Avrahami et al. 2022, 2023).

At every step, the latents outside the area are those of the image at the noise level of the step. In the end, the
image's own pixels are put back there.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from xgem.data.annotation_files import read_masks
from xgem.data.headers import uneven_grid
from xgem.modalities import get_modality
from xgem.types import InputError, Prompt

if TYPE_CHECKING:
    from xgem.configs.preset import Preset

_AREA: Final = "area"


class Edit(NamedTuple):
    """An image (1, 1, s, s) in [-1, 1], and where it may change: (1, 1, s, s) bool."""

    image: Tensor
    area: Tensor


def read_areas(preset: Preset, masks: Mapping[str, Any], images: Mapping[str, Any]) -> dict[str, Prompt]:
    """By output, the area that may change: a ``Prompt.value`` (1, s, s) bool, on the grid of the image it belongs to.

    Args:
        preset: the checkpoint's preset, whose transform the images go through, and the masks with them.
        masks: binary images, as :func:`xgem.data.annotation_files.read_masks` reads them.
        images: what the outputs start from.

    Raises:
        InputError: a mask that is empty, cannot be read, or is of an output that is no image.
    """
    areas: dict[str, Prompt] = {}
    for output, value in masks.items():
        if not get_modality(output).is_image:
            raise InputError(f"mask_image is for {output!r}, which is no image; leave it out")
        given, file = read_masks({_AREA: value}), images[output]
        grid = uneven_grid(Path(file)) if isinstance(file, str | os.PathLike) else None
        if grid is not None and given.size == grid.size:
            given = replace(given, aspect=grid.aspect)
        area = torch.from_numpy(given.squared(preset.transform).masks[_AREA])[None]
        origin = Path(value).name if isinstance(value, str | os.PathLike) else "array"
        areas[output] = Prompt(area, given.sha256, origin)
    return areas


def edits_of(images: Mapping[str, Prompt], areas: Mapping[str, Prompt]) -> dict[str, Edit]:
    """By output, the image that is edited, and where."""
    return {output: Edit(images[output].value[None], area.value[None]) for output, area in areas.items()}


def latent_area(edits: Sequence[Edit], latent_shape: Sequence[int]) -> Tensor:
    """Where the latents of images may change: (b, 1, h, w) bool, every cell that the area reaches."""
    areas = torch.cat([edit.area for edit in edits]).float()  # (b, 1, s, s)
    return F.adaptive_max_pool2d(areas, tuple(latent_shape[-2:])) > 0


def put_back(decoded: Tensor, edits: Sequence[Edit]) -> Tensor:
    """Decoded images (b, 1, s, s), with the pixels of the edited ones outside the area."""
    areas = torch.cat([edit.area for edit in edits]).to(decoded.device)
    images = torch.cat([edit.image for edit in edits]).to(decoded.device, decoded.dtype)
    return torch.where(areas, decoded, images)
