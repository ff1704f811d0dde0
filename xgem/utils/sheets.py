"""Contact sheets: prompts, the real target and generated samples side by side; only for the run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from xgem.types import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

_TITLE, _GAP, _WRAP = 16, 4, 20


def contact_sheet(
    columns: Sequence[tuple[str, NDArray[np.uint8] | Sequence[str]]], *, rows: int = 12, size: int | None = None
) -> Image:
    """One row per study, one column per entry of ``columns``.

    Args:
        columns: (title, images (n, s, s) uint8 or n texts), all of the same n.
        rows: maximum number of studies.
        size: side of a cell in pixels; by default that of the images, at least 128.
    """
    from PIL import Image, ImageDraw

    if not columns or len({len(values) for _, values in columns}) != 1:
        raise InputError(
            f"columns of {[len(values) for _, values in columns]} entries: expected the same number in each"
        )
    # An empty sheet of square cells below a line of titles
    sides = [values.shape[1] for _, values in columns if isinstance(values, np.ndarray)]
    cell = size or max([128, *sides])
    count = min(rows, len(columns[0][1]))
    step = cell + _GAP
    sheet = Image.new("L", (len(columns) * step - _GAP, _TITLE + count * step - _GAP), 32)
    # Column by column: images resized to the cell, texts wrapped
    draw = ImageDraw.Draw(sheet)
    for x, (title, values) in enumerate(columns):
        draw.text((x * step + 2, 2), title, fill=255)
        for y in range(count):
            place = (x * step, _TITLE + y * step)
            value = values[y]
            if isinstance(value, str):
                draw.multiline_text((place[0] + 3, place[1] + 2), _wrapped(value, cell), fill=230)
            else:
                sheet.paste(Image.fromarray(value).resize((cell, cell), Image.Resampling.BICUBIC), place)
    return sheet


def _wrapped(text: str, cell: int) -> str:
    from textwrap import wrap

    lines = wrap(text, width=max(_WRAP, cell // 6))
    return "\n".join(lines[: max(1, cell // 13)])


def write_sheet(
    path: Path, columns: Sequence[tuple[str, NDArray[np.uint8] | Sequence[str]]], *, rows: int = 12
) -> None:
    """Write :func:`contact_sheet` as PNG."""
    contact_sheet(columns, rows=rows).save(path)
