"""Corrected copies of images that lie on their side or are negatives."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from xgem.configs.reading import ReadOptions
from xgem.data.annotations import Box
from xgem.data.transforms import read_with
from xgem.utils.files import replacing

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from xgem.data.rows import Row


def upright(folder: Path, number: int, row: Row, turn: int, invert: bool) -> dict[str, Any]:
    """Write a row's image, turned clockwise by ``turn`` quarters and inverted, as a PNG of 8 bits, or of 16.

    16 are those whose grey levels 8 bits do not hold.

    Returns:
        what changes in the row: ``file`` and ``reading``.

    Raises:
        ImageError: the image cannot be read. OutputError: the copy cannot be written.
    """
    assert row.file is not None
    image = read_with(Path(row.file), reading=row.reading)
    pixels = 1 - image.pixels if invert else image.pixels
    pixels = np.rot90(pixels, -turn)
    # The copy is read as the study's other images are, so that what reading does must not be done before
    stored = 1 - pixels if row.reading.invert else pixels
    file = folder / f"{number:08d}.png"
    levels = np.rint(stored * 255)
    eight = bool(np.abs(stored * 255 - levels).max() < 1e-3)
    _save(file, levels.astype(np.uint8) if eight else np.rint(stored * 65535).astype(np.uint16))
    aspect = image.aspect if turn % 2 == 0 else 1 / image.aspect
    options = {**row.reading.model_dump(), "pixel_aspect": None if aspect == 1 else aspect}
    return {"file": str(file), "reading": ReadOptions(**options)}


def turned_annotations(folder: Path, number: int, row: Row, turn: int) -> dict[str, Any]:
    """Masks and boxes of a study whose annotated image is turned clockwise: what changes in all of its rows.

    Raises:
        InputError: a mask cannot be read. OutputError: a turned one cannot be written.
    """
    masks: dict[str, tuple[str, ...]] = {}
    for structure, files in row.masks.items():
        for k, mask in enumerate(files):
            drawn = np.asarray(Image.open(mask).convert("L")) > 127
            place = folder / f"{number:08d}-{structure.replace(' ', '_')}-{k}.png"
            _save(place, np.rot90(drawn, -turn).astype(np.uint8) * np.uint8(255))
            masks[structure] = (*masks.get(structure, ()), str(place))
    return {"masks": masks, "boxes": tuple(_turned(box, turn) for box in row.boxes)}


def _turned(box: Box, turn: int) -> Box:
    for _ in range(turn % 4):  # clockwise: what was at the bottom is on the left
        box = replace(box, x=1 - box.y - box.h, y=box.x, w=box.h, h=box.w)
    return box


def _save(file: Path, pixels: NDArray[Any]) -> None:
    with replacing(file) as partial, partial.open("wb") as stream:
        Image.fromarray(np.ascontiguousarray(pixels)).save(stream, "PNG")
